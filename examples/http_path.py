"""A picture by its path, over HTTP: `python examples/http_path.py [BASE_URL]`.

In another terminal, first:

    mlx-qwenvl serve --model demo --port 1234 --image-root examples/images

Requests may name the files of that folder and no others. The answer is read as a stream of
server-sent events, with nothing but an HTTP client.
"""

import json
import sys

import httpx2

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:1234/v1"

question = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "heart.png"}},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        }
    ],
    "temperature": 0,
    "stream": True,
}
try:
    with httpx2.stream(
        "POST", f"{BASE_URL}/chat/completions", json=question, timeout=300, trust_env=False
    ) as response:
        if response.is_error:
            sys.exit(json.loads(response.read())["error"]["message"])
        for line in response.iter_lines():
            if line.startswith("data: {"):
                delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
                print(delta["content"], end="", flush=True)
except httpx2.ConnectError:
    sys.exit(
        f"nothing listens at {BASE_URL}; first: "
        "mlx-qwenvl serve --model demo --port 1234 --image-root examples/images"
    )
print()
