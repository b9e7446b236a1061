"""Write an experiment's text as tokens to the cache, and say what is in it.

python -m scripts.prepare_text
python -m scripts.prepare_text --experiment llm_gpu data=llm_wikitext
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from experiments.core import resolvers as resolvers
from experiments.core.errors import UserError
from experiments.core.run import instantiate
from experiments.llm.data import TextData

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def prepare(experiment: str, overrides: list[str]) -> TextData:
    """The experiment's data module, with its tokens on disk.

    Raises:
        UserError: an option is wrong, or the text cannot be read.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={experiment}", *overrides])
    data: TextData = instantiate(cfg.data)
    data.prepare_data()
    data.setup("prepare")
    return data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="llm_cpu", help="a config of configs/experiment (default: llm_cpu)")
    parser.add_argument("overrides", nargs="*", help="as of experiments.train, such as data=llm_sotu_bytes")
    arguments = parser.parse_args()
    try:
        data = prepare(arguments.experiment, arguments.overrides)
    except (UserError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130

    table = Table(title=f"{data.source.name}, {data.spec['kind']} of {data.tokenizer.vocab_size} tokens")
    for heading in ("split", "documents", "bytes", "tokens", "bytes/token"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for role, counts in data.packed.splits.items():
        numbers = [f"{counts[name]:,}" for name in ("documents", "bytes", "tokens")]
        table.add_row(role, *numbers, f"{counts['bytes'] / counts['tokens']:.3f}")
    console = Console()
    console.print(table)
    console.print(f"{data.packed.folder}\n{data.fingerprint}", soft_wrap=True)
    for kind, count in data.problems.items():
        console.print(f"{kind}: {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
