"""`python -m safear_edit` is `safear-edit`."""

from safear_edit.cli.main import main

if __name__ == "__main__":
    main()
