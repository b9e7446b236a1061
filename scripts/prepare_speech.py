"""Makes the embedded speech data set, in LibriSpeech's folder layout. From the repository's root:

python -m scripts.prepare_speech --out data/speech
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments.asr.prepare import OPTIONS, Settings, prepare
from experiments.core.errors import UserError
from experiments.core.files import data_dir


def main() -> int:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="prepare_speech",
        description="Synthesise a small speech data set in LibriSpeech's layout (FLAC, 16 kHz), with a fingerprint; "
        "and add test-human, recordings of a person from Debian's packages, where they can be fetched.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=data_dir() / "speech", help="folder to make")
    for split, size in default.sizes.items():
        option = OPTIONS[split]
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=size, help=f"in {split}")
    parser.add_argument("--vocabulary-size", type=int, default=default.vocabulary_size, help="words that occur at all")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes at a time; the result is the same"
    )
    parser.add_argument("--human", action=argparse.BooleanOptionalAction, default=True, help="add test-human")
    parser.add_argument("--force", action="store_true", help="make it anew, whatever lies there")
    args = parser.parse_args()
    try:
        settings = Settings(
            **{option: getattr(args, option) for option in OPTIONS.values()},
            vocabulary_size=args.vocabulary_size,
            seed=args.seed,
        )
        prepare(args.out, settings, jobs=args.jobs, with_human=args.human, force=args.force)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {args.out} cannot be written ({error.strerror}): choose another --out", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
