"""Who may be asked: the servers that --endpoint names, which of them are near, and the key.

The key is PTALIGN_API_KEY of the environment alone: never the hub's token. It goes to nobody but
the addresses given, since a redirect is an error, and never in the clear across a network."""

import os
import re
import socket
from ipaddress import ip_address, ip_network
from urllib import request
from urllib.parse import urlsplit

from support.files import InputError, refusing

KEY = "PTALIGN_API_KEY"
# This machine, as which Linux takes the 0.0.0.0 that servers print, and private networks (RFC 1918,
# 3927, 4193, 4291).
NEAR = [ip_network(text) for text in (
    "127.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",
    "169.254.0.0/16", "::1/128", "::/128", "fc00::/7", "fe80::/10")]


def checked(url: str) -> str:
    """The address without a slash at its end. InputError where it is none; what may be a password
    or a key in it is not shown."""
    if "@" in url:
        raise InputError("an address with a name or a password", "--endpoint", f"set {KEY}")
    with refusing(ValueError, f"no address: {re.split('[?#]', url)[0]}", "--endpoint",
                  "give the part before /completions, such as http://127.0.0.1:8080/v1"):
        parts = urlsplit(url)
        if (parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
                or re.search("[^!-~]|[?#]", url)):
            raise ValueError("not of the form http://HOST/PATH")
    return url.rstrip("/")


def is_near(url: str) -> bool:
    """Does every address that the host's name stands for belong to NEAR?"""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InputError("no such host", f"--endpoint {url}", "check its name") from None
    hosts = {ip_address(place[0].partition("%")[0]) for *_, place in found}
    hosts = {getattr(host, "ipv4_mapped", None) or host for host in hosts}
    return all(any(host in network for network in NEAR) for host in hosts)


def headers_for(near: dict[str, bool]) -> dict[str, str]:
    """With the key, if there is one. `near`: {url: is_near(url)}."""
    headers, key = {"Content-Type": "application/json"}, os.environ.get(KEY)
    if not key:
        return headers
    if not re.fullmatch("[!-~]+", key):
        raise InputError("a key with spaces or other signs in it", KEY, "set it again")
    for url in near:
        if urlsplit(url).scheme == "http" and not near[url]:
            raise InputError("the key would cross the network in the clear", f"--endpoint {url}",
                             f"use https, or unset {KEY}")
    return {**headers, "Authorization": f"Bearer {key}"}


def opener(*, near: bool) -> request.OpenerDirector:
    """What makes the connections. A redirect, which has no handler here, is an HTTPError; a proxy
    of the environment is for the world outside."""
    made = request.OpenerDirector()
    for handler in (request.ProxyHandler({} if near else None), request.HTTPHandler(),
                    request.HTTPSHandler(), request.UnknownHandler(),
                    request.HTTPDefaultErrorHandler(), request.HTTPErrorProcessor()):
        made.add_handler(handler)
    return made
