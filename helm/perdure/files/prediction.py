"""What `helm test` asks the API: is it ready, and does it predict?

From the environment: URL; ASKS_FOR_KEYS, yes or no; API_KEY, where there is one.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

URL = os.environ["URL"]
KEY = os.environ.get("API_KEY", "").strip()
PATIENCE_SECONDS = float(os.environ.get("PATIENCE_SECONDS", "60"))

# The certificate is for the name that clients use, which need not be the Service's.
UNVERIFIED = ssl.create_default_context()
UNVERIFIED.check_hostname = False
UNVERIFIED.verify_mode = ssl.CERT_NONE


def ask(path, body=None):
    """Status and text of the answer; status 0 where nobody answers."""
    headers = {"Content-Type": "application/json"}
    if KEY:
        headers["Authorization"] = "Bearer " + KEY
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=UNVERIFIED) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def main():
    """What was found, as an error where it is not good."""
    until = time.monotonic() + PATIENCE_SECONDS
    status, text = ask("/readyz")
    while status != 200 and time.monotonic() < until:
        time.sleep(1)
        status, text = ask("/readyz")
    if status != 200:
        sys.exit(
            f"{URL}/readyz answers {status}, not 200: {text}. Is a version promoted? See the notes of the release."
        )
    status, text = ask("/v1/predict", {"text": "where is my order"})
    if os.environ["ASKS_FOR_KEYS"] == "yes" and not KEY:
        if status != 401:
            sys.exit(f"{URL}/v1/predict answers {status} to a request without a key, not 401: {text}")
        return "it is ready and asks for keys; name one in tests.apiKey.existingSecret to see a prediction"
    if status != 200:
        sys.exit(f"{URL}/v1/predict answers {status}, not 200: {text}")
    answer = json.loads(text)
    return f"{answer['version']} predicts {answer['label']!r}"


sys.stdout.write(main() + "\n")
