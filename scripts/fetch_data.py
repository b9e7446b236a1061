"""Fetch what an experiment trains on, having said what it is, how large, from where, and where a copy of yours belongs.

python -m scripts.fetch_data asr_gpu
python -m scripts.fetch_data llm_paper --tell
python -m scripts.fetch_data vqvae_gpu paths.data_dir=/big/disk

What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.core import resolvers as resolvers
from experiments.core.choices import CONFIGS
from experiments.core.command import told
from experiments.core.errors import DataError
from experiments.core.menu import commands, header

WIDTH = 100


def notice(choice: str) -> list[str]:
    """What the head of a data config says, as lines to read."""
    lines = header(CONFIGS / "data" / f"{choice}.yaml")
    text = " ".join(line for line in lines if not commands([line]))
    width = min(WIDTH, shutil.get_terminal_size().columns)
    return [*textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)]


def fetch(cfg: DictConfig, choice: str) -> None:
    """Fetch the data, and make of them what the task reads.

    Raises:
        UserError: they cannot be had, or not be read.
    """
    from experiments.core.run import instantiate

    if cfg.task == "vqvae":
        from scripts import prepare_images

        # The command that makes the store stands in the config's head.
        module, *made_by = shlex.split(commands(header(CONFIGS / "data" / f"{choice}.yaml"))[0])[2:]
        assert module == "scripts.prepare_images"
        if prepare_images.main([*made_by, "--out", str(Path(cfg.data.root).parent)]):
            raise DataError(f"{cfg.data.root} was not made")
        return
    data = instantiate(cfg.data, **({"download": True} if choice.startswith("asr_librispeech") else {}))
    data.prepare_data()
    data.setup("fit")
    print(f"{data.description['name']} is ready: {data.fingerprint}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.fetch_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="a config of configs/experiment, such as asr_gpu")
    parser.add_argument("overrides", nargs="*", help="as of experiments.train, such as paths.data_dir=/big/disk")
    parser.add_argument("--tell", action="store_true", help="say it and fetch nothing")
    parser.add_argument("--gpu", action="store_true", help="first see whether this machine has the GPU it will need")
    options = parser.parse_intermixed_args(argv)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            words = [f"experiment={options.experiment}", *options.overrides]
            cfg = compose("train", overrides=words, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        choice = cfg.hydra.runtime.choices.data
        print("\n".join(notice(choice)))
        folder = Path(cfg.paths.data_dir)
        there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        free = shutil.disk_usage(there).free / 1e9
        print(f"They go to {folder}, or where FADAM_DATA or paths.data_dir says; {free:.0f} GB are free there.")
        if options.tell:
            return 0
        if options.gpu:
            from experiments.core.run import check_gpu

            check_gpu(cfg)
        fetch(cfg, choice)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    except Exception as error:
        return told(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
