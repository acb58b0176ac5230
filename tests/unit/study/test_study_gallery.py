"""The gallery shows every prompt with its picture and every arm's answers, as plain text."""

import io
from pathlib import Path

import PIL.Image
import pytest

from narrowtune.data.examples import Image, Message, Text
from narrowtune.study.gallery import NUM_SHOWN, keep_shown, make_gallery, write_gallery
from narrowtune.study.results import BASE, ChainKey, Shown, StageResult


def prompt(text, colour=None):
    content = [Text(text)]
    if colour is not None:
        file = io.BytesIO()
        PIL.Image.new("RGB", (20, 10), colour).save(file, "png")
        content.insert(0, Image(data=file.getvalue()))
    return (Message("user", tuple(content)),)


def stage(arm, number, skill, shown, *, order="default", rate=1e-3):
    return StageResult(
        chain=ChainKey(arm=arm, learning_rate=rate, order=order, seed=0),
        stage=number,
        skill=skill,
        tasks={},
        shown=shown,
    )


def answers(kept, *tuned):
    return [
        Shown(prompt=text, picture=picture, base=f"base of {text}", tuned=answer)
        for (text, picture), answer in zip(kept, tuned, strict=True)
    ]


def test_pictures_are_kept_once_and_shown(tmp_path):
    kept = keep_shown([prompt("What?", "red"), prompt("Where?"), prompt("What?", "blue")], tmp_path)
    assert keep_shown([prompt("What?", "red")], tmp_path) == kept[:1]
    assert [text for text, _ in kept] == ["What?", "Where?", "What?"]
    assert kept[1][1] is None
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == {kept[0][1], kept[2][1]}
    found = [
        StageResult(
            chain=ChainKey(arm=BASE, learning_rate=0.0, order="", seed=0),
            stage=0,
            skill="",
            tasks={},
        ),
        stage("mlp", 1, "count", answers(kept, "3", "4", "base of What?")),
        stage("mlp", 2, "clock", answers(kept, "10:30", "x|y", "<b>")),
        stage("sa_proj", 1, "count", None),
        stage("mlp", 1, "clock", answers(kept, "a", "b", "c"), order="reversed"),
    ]
    red, where, _ = make_gallery(found, tmp_path)
    assert (red.prompt, red.base) == ("What?", "base of What?")
    assert where.picture is None
    default, turned = red.tables
    assert (default.skills, turned.skills) == (("count", "clock"), ("clock",))
    assert [row.answers for row in default.rows] == [("3", "10:30"), (None, None)]
    html, markdown = write_gallery(found, tmp_path)
    page, text = html.read_text(), markdown.read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;" in page
    assert "<b>" not in page.split("</style>")[1]
    assert f"![The picture](gallery/{kept[0][1]})" in text
    assert "| mlp | 0.001 | 0 | 3 | 10:30 |" in text
    assert "| mlp | 0.001 | 0 | = | &lt;b&gt; |" in text
    assert "| sa_proj | 0.001 | 0 | – | – |" in text.replace("\\_", "_")
    assert "x\\|y" in text


def test_a_picture_cut_short_is_written_again(tmp_path, monkeypatch):
    write = Path.write_bytes

    def cut(path, data):
        write(path, data[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut)
        with pytest.raises(KeyboardInterrupt):
            keep_shown([prompt("What?", "red")], tmp_path)
    ((_, name),) = keep_shown([prompt("What?", "red")], tmp_path)
    PIL.Image.open(tmp_path / "gallery" / name).load()


def test_a_fixed_number_of_prompts_is_shown(tmp_path):
    assert len(keep_shown([prompt(str(n)) for n in range(30)], tmp_path)) == NUM_SHOWN
    assert not (tmp_path / "gallery").exists()


def test_without_answers_there_is_no_gallery(tmp_path):
    assert write_gallery([stage("mlp", 1, "count", None)], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_gone_is_named(tmp_path):
    shown = [Shown(prompt="What?", picture="0123.png", base="a", tuned="b")]
    html, _ = write_gallery([stage("mlp", 1, "count", shown)], tmp_path)
    assert "0123.png" in html.read_text()
