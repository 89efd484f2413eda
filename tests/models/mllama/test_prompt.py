import pytest

from models.mllama.prompt import chat_message, message_content

IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("written", "content"),
    [
        ("", []),
        ("no image", [text("no image")]),
        ("<image>", [IMAGE]),
        ("<image>\n", [IMAGE]),
        ("<image>\n\nQ", [IMAGE, text("\nQ")]),
        ("<image>Q", [IMAGE, text("Q")]),
        ("see\n<image>\nhere\n", [text("see\n"), IMAGE, text("here\n")]),
        ("<image>\n<image><image>と<image>", [IMAGE, IMAGE, IMAGE, text("と"), IMAGE]),
        (" <image> ", [text(" "), IMAGE, text(" ")]),
    ],
)
def test_content(written, content):
    assert message_content(written) == content
    assert chat_message("user", written) == {"role": "user", "content": content}


def test_system_turn_is_a_string_as_the_template_reads_it():
    assert chat_message("system", "Be brief.") == {"role": "system", "content": "Be brief."}
    assert chat_message("system", "As <image>")["content"] == [text("As "), IMAGE]
