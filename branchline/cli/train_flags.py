"""Flags of `branchline train-eagle`. Imports nothing heavy."""

from __future__ import annotations

import argparse

from branchline.cli.options import add_engine_flags


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the run, then those of the engine that makes the data."""
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder of the run; goes on with what is there")
    add("--heldout", metavar="FILE.jsonl", help='prompts to measure the head by: "task", "text"')
    add("--prompts", metavar="FILE.jsonl", help="prompts to learn from; default: made by --seed")
    add("--data", action="append", metavar="FILE.safetensors", help="learn from another run's data")
    add("--only-data", action="store_true", help="make data, and stop")
    add("--shard", metavar="I/N", help="data of every N-th prompt from the I-th (1 to N) on")
    add("--tokens", type=int, default=4_000_000, metavar="N", help="of answers (default 4000000)")
    add("--max-answer", type=int, default=256, metavar="N", help="tokens of one (default 256)")
    add("--draft-vocab", type=int, default=16384, metavar="N", help="tokens it may guess (16384)")
    add("--ffn", type=int, metavar="N", help="width of the head's MLP; default: the target's")
    add("--layers", metavar="A,B,C", help="of the target, in the feature; default: as EAGLE-3 does")
    add("--unroll", type=int, default=6, metavar="N", help="steps on its own outputs (default 6)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, metavar="X", help="of training")
    length.add_argument("--epochs", type=int, default=6, metavar="N", help="of training (default)")
    length.add_argument("--steps", type=int, metavar="N", help="of training")
    add("--batch-tokens", type=int, default=8192, metavar="N", help="of a step (default 8192)")
    add("--rate", type=float, default=1.5e-3, metavar="X", help="peak learning rate (0.0015)")
    add("--save-every", type=int, default=500, metavar="N", help="steps (default 500)")
    add("--seed", type=int, default=0, metavar="N", help="of prompts, sampling, order and weights")
    add_engine_flags(parser)
    parser.set_defaults(target="branchline.cli.train_eagle:train_eagle")
