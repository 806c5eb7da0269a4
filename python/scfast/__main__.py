"""``python -m scfast`` is the command ``scfast``."""

from scfast_cli import main

if __name__ == "__main__":
    main()
