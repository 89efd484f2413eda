"""Tells the language of a text, as far as writing systems and frequent words tell it.

Evidence is needed to turn a text away: letters of another writing system, or frequent words of
another language. So "red car" counts as English, French and German, and 東京駅 as Japanese and
Chinese. Languages that share both with others are not in the table.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

_ADDRESS = re.compile(r"https?://\S+|\S+@\S+\.\S+")
_WORD = re.compile(r"[^\W\d_]+")
# Longer texts in Chinese characters alone have kana when they are Japanese.
_LONGEST_WITHOUT_KANA = 20
# Names and terms in Latin letters are part of texts in other writing systems.
_LEAST_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Language:
    """How a language is told.

    Attributes:
        script: Its writing system, as Unicode names its letters.
        words: Its most frequent words that are rare in its neighbours; empty where the writing
            system is enough.
    """

    script: str
    words: frozenset[str] = frozenset()


def _latin(words: str) -> Language:
    return Language("LATIN", frozenset(words.split()))


def _cyrillic(words: str) -> Language:
    return Language("CYRILLIC", frozenset(words.split()))


LANGUAGES: Mapping[str, Language] = {
    "ja": Language("KANA"),
    "zh": Language("CJK"),
    "ko": Language("HANGUL"),
    "el": Language("GREEK"),
    "th": Language("THAI"),
    "en": _latin(
        "the of and to is that it for was with as his on be at by this had not are but from or "
        "have an they which one you were her all there been their has would what will if can more "
        "when who so no he she we in my your its how these some into them then only very"
    ),
    "de": _latin(
        "der die das und ist nicht ein eine einer eines mit den dem des auf für im sich zu von als "
        "auch es an werden aus er hat dass sie nach wird bei noch wie über einen so zum haben nur "
        "oder aber vor zur bis mehr durch sind ich wir war kann man"
    ),
    "fr": _latin(
        "le la les et des est une un dans du pour que qui pas sur au avec ce il sont plus par ne "
        "se cette ou mais comme nous vous elle être fait aux été leur ses deux même tout on je "
        "son sa ces très où d l c qu n s j"
    ),
    "es": _latin(
        "el la los las de que y en un una es por con no se del para al lo como más pero sus le ha "
        "me si sin sobre este ya entre cuando todo esta ser son dos también fue había era muy años "
        "hasta desde está mi porque qué"
    ),
    "it": _latin(
        "il lo gli che di è per una un in sono non con del della si da le dei alla più anche ma "
        "al nel come ha questo dal nella delle io questa suo tutti era loro degli stato essere ho "
        "o e i perché quando molto"
    ),
    "pt": _latin(
        "o os as de que e do da em um uma para é com não por mais dos como mas foi ao ele das tem "
        "à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre "
        "era depois sem mesmo aos são no na"
    ),
    "nl": _latin(
        "de het een van en in is dat op te zijn met voor niet aan er om die maar als dan ook bij "
        "uit naar heeft nog wel geen hij ik je wordt deze door over zich tot werd kan meer worden "
        "veel was wat ze heb haar onder"
    ),
    "ru": _cyrillic(
        "и в не на я что он с как это по но они к у из за то все она так его о же от бы до ли вы "
        "мы если или был была было были еще ещё только когда уже для при чтобы который"
    ),
    "uk": _cyrillic(
        "і в не на я що він з як це та але вони до у із за то всі вона так його о ж від би чи ви "
        "ми якщо або був була було були ще тільки коли вже для при щоб який є й її"
    ),
    "bg": _cyrillic(
        "и в не на аз че той с като това по но те към от за да се тя така го му ще са е си или ако "
        "беше бе били още само когато вече при който до има след във със съм"
    ),
}


def is_language(text: str, code: str) -> bool:
    """Tells whether a text may be in a language.

    Args:
        text: The text; one without letters may be in any language.
        code: A key of `LANGUAGES`.
    """
    text = _ADDRESS.sub(" ", text)
    scripts = _count_scripts(text)
    letters = sum(scripts.values())
    if letters == 0:
        return True
    language = LANGUAGES[code]
    if language.script in ("KANA", "CJK"):
        return _is_chinese_or_japanese(language.script, scripts, letters)
    if scripts.get(language.script, 0) / letters < (0.5 if language.words else _LEAST_SHARE):
        return False
    if not language.words:
        return True
    return _has_most_frequent_words(text, code)


def _is_chinese_or_japanese(script: str, scripts: Mapping[str, int], letters: int) -> bool:
    kana, characters = scripts.get("KANA", 0), scripts.get("CJK", 0)
    if (kana + characters) / letters < _LEAST_SHARE or scripts.get("HANGUL", 0) > kana + characters:
        return False
    if kana == 0 and characters <= _LONGEST_WITHOUT_KANA:
        return True
    # A Chinese text may quote a word in kana; in Japanese they are never so rare.
    return (kana > 0.05 * (kana + characters)) == (script == "KANA")


def _has_most_frequent_words(text: str, code: str) -> bool:
    words = [word.lower() for word in _WORD.findall(text)]
    script = LANGUAGES[code].script
    counts = {
        other: sum(word in language.words for word in words)
        for other, language in LANGUAGES.items()
        if language.script == script
    }
    return counts[code] == max(counts.values())


def _count_scripts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for character in text:
        if character.isalpha():
            script = _script(character)
            counts[script] = counts.get(script, 0) + 1
    return counts


def _script(character: str) -> str:
    """The first word of a letter's Unicode name; all kinds of kana are one."""
    if character < "\u0250":
        return "LATIN"
    if "\u3040" <= character <= "\u30ff":
        return "KANA"
    if "\u4e00" <= character <= "\u9fff" or "\u3400" <= character <= "\u4dbf":
        return "CJK"
    name = unicodedata.name(character, "UNKNOWN").split(" ")[0]
    return {"HALFWIDTH": "KANA", "FULLWIDTH": "LATIN"}.get(name, name)
