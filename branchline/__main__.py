"""`python -m branchline`: hands over to the command line."""


def main() -> None:
    """Run the command line (`branchline …`)."""
    from branchline.runtime.cli import main as cli_main

    raise SystemExit(cli_main())


if __name__ == "__main__":
    main()
