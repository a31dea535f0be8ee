import pytest

from nblib import backbones
from nblib.files import sha256_file


def test_embedded_weights_are_the_published_ones():
    folder = backbones.embedded_folder()
    assert sha256_file(folder / "model.safetensors") == backbones.EMBEDDED_SHA256
    assert backbones.resolve(backbones.EMBEDDED) == str(folder)


def test_other_weights_are_refused(monkeypatch):
    backbones.embedded_folder.cache_clear()
    monkeypatch.setattr(backbones, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="expected 0000"):
        backbones.embedded_folder()
    monkeypatch.undo()
    backbones.embedded_folder.cache_clear()


def test_offline_fails_in_words():
    with pytest.raises(OSError, match="--profile quick"):
        backbones.load_tokenizer("some-organisation/some-model")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        backbones.resolve(str(tmp_path / "nowhere"))


def test_tiny_bert_keeps_hangul_whole(tmp_path):
    folder = backbones.make_tiny_bert(tmp_path, ["서울의 봄은 짧다", "서울의 여름은 길다"] * 3, vocab_size=80)
    tokenizer = backbones.load_tokenizer(str(folder))
    ids = tokenizer("서울의 봄", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "서울의 봄"
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert [tokenizer.decode([i]) for i in range(5, len(tokens))] == tokens[5:], "id -> token is one to one"
