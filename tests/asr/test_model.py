"""The Conformer, greedy decoding and the scores of a split."""

from __future__ import annotations

import pytest
import torch
from torchaudio.models import Conformer

from experiments.asr.model import ConformerCTC, PaddedBatchNorm, subsampled
from experiments.asr.module import greedy_decode
from experiments.asr.text import CharTokenizer
from experiments.core.errors import ConfigError


def small(**options) -> ConformerCTC:
    return ConformerCTC(**({"vocab_size": 29, "dim": 16, "layers": 1, "heads": 2, "kernel": 3} | options))


def test_output_is_log_probabilities_of_the_announced_length() -> None:
    model = small().eval()
    lengths = torch.tensor([57, 33])
    log_probs, out = model(torch.randn(2, 57, 80), lengths)
    assert log_probs.shape == (2, int(out.max()), 29)
    assert torch.equal(out, subsampled(lengths))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]))


@pytest.mark.parametrize("frames", range(7, 40))
def test_announced_length_is_the_convolutions_length(frames: int) -> None:
    model = small()
    assert model.subsampling(torch.zeros(1, frames, 80)).shape[1] == int(subsampled(torch.tensor(frames)))


def test_the_encoder_is_torchaudios() -> None:
    torch.manual_seed(0)
    model, features, lengths = small(channels=(2, 2)).eval(), torch.randn(2, 51, 80), torch.tensor([51, 51])
    found, announced = model(features, lengths)
    torchaudios = Conformer(16, 2, 64, 1, 3).eval()
    torchaudios.load_state_dict(model.encoder.state_dict())
    encoded, out = torchaudios(model.subsampling(features), subsampled(lengths))
    assert torch.equal(found, model.head(encoded).log_softmax(-1))
    assert torch.equal(announced, out)


SIZES = [{}, {"dim": 96, "layers": 4, "heads": 4, "kernel": 15, "channels": (16, 32)}]


@pytest.mark.parametrize("size", SIZES, ids=["small", "cpu"])
@pytest.mark.parametrize(("norm", "training"), [("batch", False), ("layer", False), ("layer", True)])
def test_an_utterance_is_the_same_alone_and_in_any_batch(norm: str, training: bool, size: dict) -> None:
    torch.manual_seed(0)
    model = small(norm=norm, **size).train(training)
    for module in model.modules():  # statistics as training leaves them
        if isinstance(module, PaddedBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    frames = [31, 51, 87, 44, 133]
    utterances = [torch.randn(n, 80) for n in frames]
    batch = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    for padding in (0, 60):
        together, lengths = model(torch.nn.functional.pad(batch, (0, 0, 0, padding)), torch.tensor(frames))
        for row, utterance in enumerate(utterances):
            alone, _ = model(utterance[None], torch.tensor([len(utterance)]))
            torch.testing.assert_close(together[row, : lengths[row]], alone[0], atol=2e-5, rtol=1e-5)


def test_batch_norm_in_training_is_of_the_frames_that_are_no_padding() -> None:
    torch.manual_seed(0)
    ours, torchs = PaddedBatchNorm(4), torch.nn.BatchNorm1d(4)
    x, padding = torch.randn(3, 4, 7), torch.arange(7) >= torch.tensor([7, 3, 5])[:, None]
    ours.padding = padding
    found, expected = ours(x).transpose(1, 2)[~padding], torchs(x.transpose(1, 2)[~padding])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    x.masked_fill_(padding[:, None], 1e6)
    torch.testing.assert_close(ours(x).transpose(1, 2)[~padding], found)


def test_sizes() -> None:
    count = sum(p.numel() for p in ConformerCTC(29).parameters())
    assert 0.85e6 < count < 1.0e6
    with torch.device("meta"):
        conformer_s = ConformerCTC(256, dim=144, layers=16, kernel=31, channels=(144, 144), dropout=0.1)
    assert sum(p.numel() for p in conformer_s.parameters()) == 8_390_848
    assert sum(p.numel() for p in ConformerCTC(29, norm="layer").parameters()) == count


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("vocab_size", 0), ("dim", 15), ("heads", 0), ("layers", 0), ("kernel", 4), ("n_mels", 3),
        ("channels", (1,)), ("dropout", 1.0), ("ffn_ratio", 0), ("norm", "group"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(option: str, value) -> None:
    named = "dim" if option == "heads" else option
    with pytest.raises(ConfigError, match=f"model.{named} must be"):
        small(**{option: value})


def test_greedy_decoding_merges_repeats_and_drops_blanks() -> None:
    tokenizer = CharTokenizer()
    c, a, t = tokenizer.encode("CAT")
    path = [0, c, c, 0, a, t, 0, t, 0, 0]
    log_probs = torch.full((2, len(path), tokenizer.vocab_size), -10.0)
    for frame, symbol in enumerate(path):
        log_probs[:, frame, symbol] = 0.0
    assert greedy_decode(log_probs, torch.tensor([10, 6]), tokenizer) == ["CATT", "CAT"]
    assert greedy_decode(log_probs, torch.tensor([1, 0]), tokenizer) == ["", ""]
