"""`branchline …` and `python -m branchline`: hand over to the command line."""


def main() -> None:
    """Run the command line and exit with its status."""
    from branchline.cli.main import main as command_line

    raise SystemExit(command_line())


if __name__ == "__main__":
    main()
