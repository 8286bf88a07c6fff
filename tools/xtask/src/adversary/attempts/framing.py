"""Requests that two readers take for different ones: behind what the first reader forwards as a body, the second one finds a
request for TOKEN, which nobody has judged."""

from door_calls import door, answer, passed
from egress import proxy


def hidden(token):
    return f"GET /{token} HTTP/1.1\r\nHost: framed.example\r\n\r\n"


def tell(framed, fields, body):
    """Sends an allowed request with these fields, and everything behind its head as it is."""
    lines = [f"POST http://{framed}/ok HTTP/1.1", f"Host: {framed}", *(f"{name}: {value}" for name, value in proxy()), *fields, "", ""]
    with door() as out:
        out.sendall("\r\n".join(lines).encode() + body.encode())
        return passed(answer(out))


def length_before_chunks(framed, token):
    body = f"0\r\n\r\n{hidden(token)}"
    return tell(framed, [f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"], body)


def chunks_before_length(framed, token):
    inner = hidden(token)
    size = f"{len(inner):x}\r\n"
    return tell(framed, ["Transfer-Encoding: chunked", f"Content-Length: {len(size)}"], f"{size}{inner}\r\n0\r\n\r\n")


def chunks_by_another_name(framed, token):
    body = f"0\r\n\r\n{hidden(token)}"
    return tell(framed, ["Transfer-Encoding: xchunked", f"Content-Length: {len(body)}"], body)


def chunks_in_odd_spelling(framed, token):
    body = f"0\r\n\r\n{hidden(token)}"
    return tell(framed, ["Transfer-Encoding : chunked", f"Content-Length: {len(body)}"], body)


def size_with_a_sign(framed, token):
    return tell(framed, ["Transfer-Encoding: chunked"], f"+0\r\n\r\n{hidden(token)}")


def size_beyond_all_bounds(framed, token):
    return tell(framed, ["Transfer-Encoding: chunked"], f"10000000000000000\r\n\r\n{hidden(token)}")


def extension_with_a_line_end(framed, token):
    return tell(framed, ["Transfer-Encoding: chunked"], f"4;x\nXX\r\n\r\n0\r\n\r\n{hidden(token)}")


def junk_behind_a_chunk(framed, token):
    return tell(framed, ["Transfer-Encoding: chunked"], f"3\r\nabcjunk\r\n0\r\n\r\n{hidden(token)}")


def two_lengths(framed, token):
    body = hidden(token)
    return tell(framed, ["Content-Length: 0", f"Content-Length: {len(body)}"], body)
