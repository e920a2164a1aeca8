"""The command line as `python -m attractorlab`, and under torchrun as `torchrun -m attractorlab`."""

from attractorlab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
