"""A model built step by step, like mistral.rs's Rust API: `python examples/builder_api.py`."""

from pathlib import Path

from mlx_qwenvl.compat import (
    IsqType,
    TextMessageRole,
    VisionLoaderType,
    VisionMessages,
    VisionModelBuilder,
)

PICTURE = Path(__file__).parent / "images" / "star.png"

model = (
    VisionModelBuilder("demo", VisionLoaderType.Qwen2VL)
    .with_isq(IsqType.Q8_0)
    .with_logging()
    .build()
)
messages = VisionMessages().add_image_message(
    TextMessageRole.User, "What is shown in this image?", PICTURE.read_bytes()
)
response = model.send_chat_request(messages)

print(response.choices[0].message.content)
print(f"{response.usage.avg_prompt_tok_per_sec:.0f} prompt tokens a second")
print(f"{response.usage.avg_compl_tok_per_sec:.0f} answer tokens a second")
