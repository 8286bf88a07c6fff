"""One attempt to get out of a sandbox, to what is not the agent's: python3 attempt.py NAME [KEY=VALUE...]

Prints one line, "attempt NAME through ..." or "attempt NAME refused ...". An attempt is a function that comes back when it
got through, and raises what the system said when it did not.
"""

import sys

import host
import network
import secrets_of_others


def main():
    name, pairs = sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:])
    module, function = name.split(".")
    where = {"secrets": secrets_of_others, "network": network, "host": host}[module]
    try:
        told = getattr(where, function)(**pairs)
        print("attempt", name, "through", told or "")
    except (OSError, ValueError, LookupError) as error:
        print("attempt", name, "refused", type(error).__name__, str(error).replace("\n", " ")[:300])


main()
