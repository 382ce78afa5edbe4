"""A picture by its URL, over HTTP with the OpenAI SDK: `python examples/http_url.py [BASE_URL]`.

In another terminal, first:

    mlx-qwenvl serve --model 2b --port 1234

The server fetches the picture, from public addresses only; this is the one example that needs a
network. The SDK comes with `pip install openai`.
"""

import sys

import openai

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:1234/v1"
PICTURE = "https://www.nhmagazine.com/content/uploads/2019/05/mtwashingtonFranconia-2-19-18-108-Edit-Edit.jpg"

client = openai.OpenAI(base_url=BASE_URL, api_key="EMPTY")
try:
    completion = client.chat.completions.create(
        model="default",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": PICTURE}},
                    {"type": "text", "text": "What is shown in this image?"},
                ],
            }
        ],
        max_tokens=256,
        temperature=0,
    )
except openai.APIConnectionError:
    sys.exit(f"nothing listens at {BASE_URL}; first: mlx-qwenvl serve --model 2b --port 1234")
except openai.APIStatusError as error:
    sys.exit(error.message)
print(completion.choices[0].message.content)
