import pytest

from preparation.languages import LANGUAGES, is_language
from preparation.options import FilterOptions

TEXTS = {
    "ja": "昨日は友達と一緒に東京駅の近くの店でラーメンを食べました。とても美味しかったです。",
    "zh": "昨天我和朋友一起在东京车站附近的一家餐馆吃了拉面，味道非常好，我们都很高兴。",
    "ko": "어제 친구와 함께 도쿄역 근처의 가게에서 라면을 먹었습니다.",
    "en": "Yesterday we had noodles with a friend in a shop that is near the station.",
    "de": "Gestern haben wir mit einem Freund in der Nähe des Bahnhofs Nudeln gegessen.",
    "fr": "Hier nous avons mangé des nouilles avec un ami dans un restaurant près de la gare.",
    "es": "Ayer comimos fideos con un amigo en una tienda que está cerca de la estación.",
    "it": "Ieri abbiamo mangiato gli spaghetti con un amico in un negozio che è alla stazione.",
    "pt": "Ontem comemos macarrão com um amigo em uma loja que não fica longe da estação.",
    "nl": "Gisteren hebben we met een vriend noedels gegeten in een winkel bij het station.",
    "ru": "Вчера мы ели лапшу с другом в магазине, который находится рядом с вокзалом.",
    "uk": "Вчора ми їли локшину з другом у магазині, що знаходиться біля вокзалу, і це було добре.",
    "bg": "Вчера ядохме юфка с приятел в един магазин, който се намира близо до гарата, и беше.",
    "el": "Χθες φάγαμε ζυμαρικά με έναν φίλο κοντά στον σταθμό.",
    "th": "เมื่อวานเรากินก๋วยเตี๋ยวกับเพื่อนใกล้สถานี",
}


def test_every_language_of_the_table_is_told_from_every_other():
    assert set(TEXTS) == set(LANGUAGES)
    for language, text in TEXTS.items():
        told = {code for code in LANGUAGES if is_language(text, code)}
        assert told == {language}, text


def test_a_text_without_evidence_is_kept():
    for code in ("en", "de", "fr"):
        assert is_language("red car, 2019", code)
    assert not is_language("red car, 2019", "ja")
    assert is_language("東京駅", "ja")
    assert is_language("東京駅", "zh")
    assert is_language("1234 !?", "ja")


def test_names_and_addresses_in_latin_letters_belong_to_japanese():
    text = "https://example.com/a/very/long/address の Panasonic DMC-GH4 で撮った写真です。"
    assert is_language(text, "ja")
    assert not is_language("A photo of Panasonic DMC-GH4, called 写真 (photograph)", "ja")


def test_a_language_that_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="^language: 'sv' cannot be told .* allowed are bg, de"):
        FilterOptions(language="sv")
