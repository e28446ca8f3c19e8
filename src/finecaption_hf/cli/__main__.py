"""`python -m finecaption_hf.cli`."""

from . import main

if __name__ == "__main__":
    main()
