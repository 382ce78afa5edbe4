"""mistral.rs's Python API: `python examples/runner_api.py`.

A program written for it needs another import line and nothing else; what becomes of each option is
told in docs/compat.md.
"""

from pathlib import Path

from mlx_qwenvl.compat import ChatCompletionRequest, Runner, VisionArchitecture, Which

PICTURE = Path(__file__).parent / "images" / "word.png"

runner = Runner(
    which=Which.VisionPlain(model_id="demo", arch=VisionArchitecture.Qwen2VL),
    in_situ_quant="Q8_0",
)
request = ChatCompletionRequest(
    model="default",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": str(PICTURE)}},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        }
    ],
    max_tokens=256,
    temperature=0.1,
    top_p=0.1,
    stream=True,
)
for piece in runner.send_chat_completion_request(request):
    print(piece.choices[0].delta.content, end="", flush=True)
print(f"\n{piece.usage}")
