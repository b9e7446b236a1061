import json
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.asr.data import SpeechBatch, SpeechDataModule, bucketed_batches, even_batches, pack
from experiments.asr.librispeech import combined_fingerprint, read_split
from experiments.asr.text import CharTokenizer
from experiments.core.errors import ConfigError, DataError
from tests.asr.conftest import SENTENCES, write_split, write_utterance


def make(root: Path, train_batches: int = 12, data_seed: int = 1, **options: Any) -> SpeechDataModule:
    """A small data module, set up, in which any warning is an error."""
    data = SpeechDataModule(
        str(root), **({"batch_seconds": 6.0, "max_seconds": 5.0, "n_mels": 20, "max_utterances": 4} | options)
    )
    data.configure(train_batches=train_batches, data_seed=data_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.prepare_data()
        data.setup("fit")
    return data


def ids(data: SpeechDataModule) -> list[list[str]]:
    return [batch.ids for batch in data.train_dataloader()]


SECONDS = [0.5 + 0.37 * (i * 7 % 23) for i in range(200)]


@pytest.mark.parametrize("epoch", range(3))
def test_an_epoch_holds_each_utterance_once_within_the_budget(epoch: int) -> None:
    batches = bucketed_batches(SECONDS, budget=30.0, max_utterances=9, seed=1, epoch=epoch)
    assert Counter(i for batch in batches for i in batch) == Counter(range(200))
    for batch in batches:
        assert 1 <= len(batch) <= 9
        assert len(batch) * max(SECONDS[i] for i in batch) <= 30.0
    assert sum(len(b) * max(SECONDS[i] for i in b) for b in batches) < 1.25 * sum(SECONDS)  # little padding


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        return bucketed_batches(SECONDS, 30.0, 9, seed, epoch)

    assert batches(1, 4) == batches(1, 4)
    together = {frozenset(batch) for batch in batches(1, 0)}
    for seed, epoch in ((1, 1), (2, 0)):
        assert len(together & {frozenset(batch) for batch in batches(seed, epoch)}) < len(together) / 2


def test_one_utterance_as_long_as_the_budget_is_a_batch_of_its_own() -> None:
    assert pack([0, 1, 2], [1.0, 5.0, 1.0], 5.0, 10) == [[0], [1], [2]]
    assert pack([0, 2, 1], [1.0, 5.0, 1.0], 5.0, 10) == [[0, 2], [1]]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_evaluate_everything_once_in_as_many_steps(processes: int) -> None:
    batches = even_batches([[0, 1, 2], [3, 4], [5]], processes)
    assert len(batches) % processes == 0
    assert sorted(i for batch in batches for i in batch) == list(range(6))


def test_more_processes_than_utterances_is_an_error() -> None:
    with pytest.raises(DataError, match="3 utterances cannot be evaluated by 4 processes"):
        even_batches([[0, 1], [2]], 4)


def test_a_batch_is_padded_and_says_its_lengths(speech_root: Path) -> None:
    data = make(speech_root)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, SpeechBatch)
    count = len(batch.ids)
    assert batch.features.shape == (count, int(batch.feature_lengths.max()), 20)
    assert batch.targets.shape == (count, int(batch.target_lengths.max()))
    assert batch.features.dtype == torch.float32
    assert batch.feature_lengths.dtype == batch.targets.dtype == batch.target_lengths.dtype == torch.int64
    for k in range(count):
        frames, symbols = int(batch.feature_lengths[k]), int(batch.target_lengths[k])
        assert (batch.features[k, frames:] == 0).all()
        assert (batch.features[k, :frames] != 0).any(dim=1).all()
        assert (batch.targets[k, symbols:] == data.tokenizer.blank).all()
        assert data.tokenizer.decode(batch.targets[k, :symbols].tolist()) == batch.texts[k]
        assert batch.texts[k] == SENTENCES[int(batch.ids[k][-4:]) % len(SENTENCES)]


def test_the_run_has_exactly_its_batches_and_goes_on_where_it_stopped(speech_root: Path) -> None:
    everything = ids(make(speech_root, train_batches=15))
    assert len(everything) == 15
    resumed = make(speech_root, train_batches=15)
    resumed.load_state_dict({"batches": 9})
    assert ids(resumed) == everything[9:]
    assert ids(make(speech_root, train_batches=15, data_seed=2)) != everything


def test_the_same_batches_come_with_and_without_cache_and_workers(speech_root: Path) -> None:
    plain = list(make(speech_root, train_batches=8, cache_features=False).train_dataloader())
    for options in ({"cache_features": True}, {"cache_features": True, "num_workers": 2}, {"num_workers": 2}):
        data = make(speech_root, train_batches=8, **({"cache_features": False} | options))
        for a, b in zip(plain, data.train_dataloader(), strict=True):
            assert a.ids == b.ids
            assert torch.equal(a.features, b.features)
            assert torch.equal(a.targets, b.targets)


def test_the_data_sets_can_go_to_a_spawned_worker(speech_root: Path) -> None:
    data = make(speech_root)
    before = data.train_set[3]
    after = pickle.loads(pickle.dumps(data.train_set))[3]
    assert torch.equal(before.features, after.features)
    assert before.id == after.id


def test_each_split_has_its_loader_and_is_seen_once(speech_root: Path) -> None:
    data = make(speech_root)
    assert data.val_names == ["dev-clean", "dev-other"]
    assert data.test_names == ["test-clean", "test-other"]
    for names, loaders in ((data.val_names, data.val_dataloader()), (data.test_names, data.test_dataloader())):
        for name, loader in zip(names, loaders, strict=True):
            seen = sorted(key for batch in loader for key in batch.ids)
            assert seen == [u.id for u in read_split(speech_root, name).utterances]


def test_optional_splits_are_tested_where_they_are_and_change_no_fingerprint(speech_root: Path) -> None:
    without = make(speech_root, optional_test_splits=["test-human"])
    assert without.test_names == ["test-clean", "test-other"]
    write_split(speech_root, "test-human", 3, speaker=20)
    data = make(speech_root, optional_test_splits=["test-human"])
    assert data.test_names == ["test-clean", "test-other", "test-human"]
    assert len(data.test_dataloader()) == 3
    assert data.fingerprint == without.fingerprint
    assert list(data.description["optional"]) == ["test-human"]


def test_the_record_gets_fingerprint_and_sizes(speech_root: Path) -> None:
    data = make(speech_root)
    splits = [read_split(speech_root, s) for s in ("test-other", "train-clean", "dev-clean", "dev-other", "test-clean")]
    assert data.fingerprint == combined_fingerprint(splits)
    assert data.fingerprint.startswith("sha256:")
    assert data.description["train_utterances"] == 20
    assert data.description["train_hours"] == pytest.approx(
        sum(u.seconds for u in splits[1].utterances) / 3600, abs=1e-3
    )
    assert data.description["eval_utterances"] == {s: 4 for s in ("dev-clean", "dev-other", "test-clean", "test-other")}
    assert data.problems == {}
    json.dumps(data.description)


def test_bad_utterances_are_named_in_one_warning_and_counted(speech_root: Path) -> None:
    cut = write_utterance(speech_root, "train-clean", 30, "CUT OFF")
    cut.write_bytes(cut.read_bytes()[:900])
    short = write_utterance(speech_root, "train-clean", 31, "MUCH TOO MANY WORDS FOR THIS", seconds=0.6)
    long = write_utterance(speech_root, "train-clean", 32, "MUCH TOO LONG", seconds=5.5)
    empty = write_utterance(speech_root, "dev-clean", 33, "", speaker=8)
    slow = write_utterance(speech_root, "test-clean", 34, "SLOW", rate=8000, speaker=10)
    data = SpeechDataModule(str(speech_root), max_bad_share=0.3, batch_seconds=8.0, max_seconds=5.0)
    data.configure(train_batches=4, data_seed=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
    (warning,) = [w for w in caught if "speech data" in str(w.message)]
    for file in (cut, short, long, empty, slow):
        assert file.name in str(warning.message)
    assert data.problems == {
        "unreadable-audio": 1,
        "too-short-for-ctc": 1,
        "outside-duration": 1,
        "empty-transcript": 1,
        "resampled": 1,
    }
    used = {entry[3] for entry in data.train_set.entries}
    assert len(used) == 20
    assert not used & {cut.stem, short.stem, long.stem}
    assert slow.stem in {entry[3] for entry in data.eval_sets["test-clean"].entries}


def test_no_batch_has_an_infinite_loss_and_the_rule_is_exact(speech_root: Path) -> None:
    # 4 of the 5 labels differ from their neighbours: 6 encoder frames, that is at least 27 feature frames.
    just = write_utterance(speech_root, "train-clean", 40, "HELLO", seconds=0.26)
    short = write_utterance(speech_root, "train-clean", 41, "HELLO", seconds=0.25)
    data = SpeechDataModule(str(speech_root), max_bad_share=0.3, batch_seconds=8.0, max_seconds=5.0)
    data.prepare_data()
    with pytest.warns(UserWarning, match=rf"1 too-short-for-ctc \(.*{short.name}: 5 frames for 6\)"):
        data.setup("fit")
    index = next(i for i, entry in enumerate(data.train_set.entries) if entry[3] == just.stem)
    target = data.train_set[index].target
    for frames, finite in ((6, True), (5, False)):
        loss = torch.nn.functional.ctc_loss(
            torch.zeros(frames, 1, 29).log_softmax(-1), target[None], torch.tensor([frames]), torch.tensor([5])
        )
        assert bool(torch.isfinite(loss)) is finite


def test_a_long_list_of_bad_files_is_cut_short(speech_root: Path) -> None:
    for number in range(50, 58):
        write_utterance(speech_root, "train-clean", number, None)
    data = SpeechDataModule(str(speech_root), max_bad_share=0.5)
    with pytest.warns(UserWarning, match=r"8 missing-transcript \(.*0050\.flac.*0054\.flac and 3 more\)"):
        data.setup("fit")


def test_too_many_bad_files_are_an_error_that_names_some(speech_root: Path) -> None:
    for number in range(30, 34):
        write_utterance(speech_root, "train-clean", number, None)
    data = SpeechDataModule(str(speech_root))
    with pytest.raises(DataError, match=r"4 utterances of train-clean are bad, more than .*0\.05 allows: .*0030\.flac"):
        data.setup("fit")


def test_a_split_that_is_trained_on_and_evaluated_has_its_bad_files_once(speech_root: Path) -> None:
    write_utterance(
        speech_root, "train-clean", 40, "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN " * 8, seconds=0.5
    )
    data = SpeechDataModule(str(speech_root), val_splits=["train-clean"], max_bad_share=0.5)
    with pytest.warns(UserWarning, match=r"1 too-short-for-ctc \(.*0040"):
        data.setup("fit")
    assert data.problems["too-short-for-ctc"] == 1


def test_nothing_left_to_train_on_is_an_error(speech_root: Path) -> None:
    data = SpeechDataModule(str(speech_root), min_seconds=4.0, max_seconds=5.0)
    with pytest.raises(DataError, match="no usable utterance in the training data"):
        data.setup("fit")


def test_missing_data_is_one_sentence_with_the_command(tmp_path: Path) -> None:
    data = SpeechDataModule(str(tmp_path / "speech"))
    with pytest.raises(DataError, match="make data-asr"):
        data.prepare_data()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_option(speech_root: Path) -> None:
    (speech_root / "file").write_text("")
    data = SpeechDataModule(str(speech_root), cache_dir=str(speech_root / "file" / "cache"))
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        data.prepare_data()


def test_sentence_pieces_are_trained_on_the_training_transcripts(speech_root: Path) -> None:
    data = make(speech_root, tokenizer="sentencepiece", vocab_size=30)
    assert data.tokenizer.vocab_size == 30
    batch = next(iter(data.train_dataloader()))
    assert data.tokenizer.decode(batch.targets[0, : int(batch.target_lengths[0])].tolist()) == batch.texts[0]
    assert isinstance(make(speech_root).tokenizer, CharTokenizer)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train_splits": []}, "train_splits"),
        ({"train_splits": "train-clean"}, "train_splits"),
        ({"val_splits": ["a", "a"]}, "val_splits"),
        ({"tokenizer": "words"}, "tokenizer must be char or sentencepiece, got 'words'"),
        ({"min_seconds": 30.0}, "min_seconds"),
        ({"batch_seconds": 10.0}, "batch_seconds"),
        ({"max_utterances": 0}, "max_utterances"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"n_mels": 0}, "n_mels"),
        ({"stats_utterances": 0}, "stats_utterances"),
        ({"num_workers": -1}, "num_workers"),
        ({"max_bad_share": 2.0}, "max_bad_share"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        SpeechDataModule(str(tmp_path), **options)


@pytest.mark.parametrize("name", ["asr_synthetic", "asr_librispeech"])
def test_the_configs_build_the_data_module(name: str, tmp_path: Path) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from tests.conftest import CONFIGS

    cfg = OmegaConf.create(
        {"paths": {"data_dir": str(tmp_path)}, "data": OmegaConf.load(CONFIGS / "data" / f"{name}.yaml")}
    )
    data = instantiate(cfg.data)
    assert isinstance(data, SpeechDataModule)
    assert tmp_path in (data.root, data.root.parent)
