"""One attempt to get out of a sandbox, to what is not the agent's: python3 attempt.py NAME [KEY=VALUE...], or python3 attempt.py NAME @FILE

Prints one line, "attempt NAME through ..." or "attempt NAME refused ERROR ...". An attempt is a function that comes back when
it got through, and raises what the system said when it did not: an OSError by its name, a refusal by the door's own word, or
"NOTHING" where there was nothing to be seen. FILE is a JSON document with the arguments of every attempt by its name.
"""

import errno
import json
import sys

import door
import door_calls
import egress
import framing
import host
import mcp
import network
import pushes
import record
import resources
import secrets_of_others
import server
import siblings

MODULES = {
    "secrets": secrets_of_others, "network": network, "host": host, "server": server, "siblings": siblings,
    "door": door, "egress": egress, "framing": framing, "mcp": mcp, "pushes": pushes, "record": record,
    "resources": resources,
}


def main():
    name, words = sys.argv[1], sys.argv[2:]
    if words and words[0].startswith("@"):
        with open(words[0][1:]) as file:
            words = json.load(file)[name]
    pairs = dict(pair.split("=", 1) for pair in words)
    module, function = name.split(".")
    try:
        told = getattr(MODULES[module], function)(**pairs)
        print("attempt", name, "through", told or "")
    except door_calls.Refusal as error:
        print("attempt", name, "refused", error.word, str(error).replace("\n", " ")[:300])
    except LookupError as error:
        print("attempt", name, "refused NOTHING", error)
    except OSError as error:
        word = errno.errorcode.get(error.errno, type(error).__name__)
        print("attempt", name, "refused", word, str(error).replace("\n", " ")[:300])


main()
