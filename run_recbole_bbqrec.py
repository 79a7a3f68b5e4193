"""`bbqrec train` as a script: `python run_recbole_bbqrec.py --model=BBQRec --dataset=ml-100k`."""

import sys

from recbole_bbqrec.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
