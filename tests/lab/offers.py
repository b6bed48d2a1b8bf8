"""Sends many offers (see offer.py), one after the other, from one namespace. Standard input: a JSON list of objects
with offer.py's options by name. Stand-alone, beside offer.py. Prints {"sent", "refused"} over all of them."""

from __future__ import annotations

import argparse
import json
import sys

from offer import send


def main() -> None:
    sent = refused = 0
    for item in json.load(sys.stdin):
        done = send(argparse.Namespace(**item))
        sent, refused = sent + done[0], refused + done[1]
    print(json.dumps({"sent": sent, "refused": refused}))


if __name__ == "__main__":
    main()
