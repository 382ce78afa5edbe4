"""A picture in the request itself, as base64: `python examples/http_base64.py [BASE_URL]`.

In another terminal, first:

    mlx-qwenvl serve --model demo --port 1234

A `data:` URL says it the way OpenAI's API does; the base64 alone is understood as well.
"""

import base64
import sys
from pathlib import Path

import httpx2

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:1234/v1"
PICTURE = Path(__file__).parent / "images" / "star.png"

encoded = base64.b64encode(PICTURE.read_bytes()).decode()
question = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        }
    ],
    "temperature": 0,
}
try:
    response = httpx2.post(
        f"{BASE_URL}/chat/completions", json=question, timeout=300, trust_env=False
    )
except httpx2.ConnectError:
    sys.exit(f"nothing listens at {BASE_URL}; first: mlx-qwenvl serve --model demo --port 1234")
reply = response.json()
if response.is_error:
    sys.exit(reply["error"]["message"])
print(reply["choices"][0]["message"]["content"])
print(f"{reply['usage']['avg_compl_tok_per_sec']:.0f} tokens a second")
