"""API keys: what they look like, where their digests are kept, and the commands that make and revoke them."""

from perdure_services.keys.key import SCOPES, Issued, Key, KeyScope, digest, issue, redacted
from perdure_services.keys.key_file import add_key, read_keys, remove_key

__all__ = ["SCOPES", "Issued", "Key", "KeyScope", "add_key", "digest", "issue", "read_keys", "redacted", "remove_key"]
