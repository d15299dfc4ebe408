"""Two thousand lines that tokenizers are compared on: twelve scripts, code, numbers, emoji, marks and white space, from one seed."""

from __future__ import annotations

import random

_TEXTS = (
    "All human beings are born free and equal in dignity and rights. It's what they'd've said; WE'LL SEE, don't you?",
    "Größe, naïve façade, Œuvre, Ångström, Łódź, İstanbul'da, tiếng Việt được viết, cafe\u0301 au lait, sm\u00f8rrebr\u00f8d",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια, λ → λόγος",
    "Все люди рождаются свободными и равными в своём достоинстве и правах. Ґанок, ЁЛКА, объём",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق، ١٢٣٤٥ مَرْحَبًا",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. שָׁלוֹם",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। १२३ क़लम",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ๑๒๓",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，2024年1月1日。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。ﾊﾝｶｸ Ｆｕｌｌ",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. ㄱㄴㄷ 각\u1100\u1161",
    "Բոլոր մարդիկ ծնվում են ազատ; ყველა ადამიანი იბადება თავისუფალი; ሰው ሁሉ ነጻ ሆኖ",
    "def f(x: int) -> list[str]:\n    return [f'{i:>3}' for i in range(x)]  # don't",
    "\tif (a != b && c->d[0] == '\\n') {\r\n\t\treturn x<<2 | ~y;\r\n\t}",
    "SELECT COUNT(*) FROM t WHERE name LIKE '%O''Neil%' AND id>=10_000;--x",
    '<div class="a b">&amp;</div> https://example.org/a?b=c&d=%20#e user@mail.com C:\\Temp\\x',
    "HTTPServerError camelCaseName XMLHttpRequest snake_case SCREAMING_CASE iPhone15Pro",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-10 0xFF ½ ² Ⅷ 12h30 v1.2.3",
    "🙂 😀😃 👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 👍🏽 ❤️ ☃ ★ → ≤ ∑∫ €5 £6 ¥7 © ™ 𝒳𝔸 𐍈",
    "\u2018a\u2019 \u201cb\u201d \u2026 \u2014 \u2013 ?! ... !!! ((())) [[x]] {{y}} ``` ### --- === *** ___ /// \\\\\\ $$ ^^ ~~ ||",
    "a\u0300\u0301 e\u0323\u0302 \u200b\u200d\ufeff \u00ad \u202eabc\u202c \u0000\u0001\u007f \ue000 \ufffd",
)
_SPACES = (
    " ",
    " ",
    " ",
    "",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n",
    "\n  ",
    "\u00a0",
    "\u3000",
    "\u2009",
    "\x0b",
    "\x85",
    " " * 7,
    " " * 19,
)


def lines(count: int = 2000) -> list[str]:
    """Parts of the texts, whole and broken at any character, mixed, with all kinds of space between them and at the ends."""
    draw = random.Random(16)
    found = list(_TEXTS) + [" " * width + "x" for width in range(1, 34)] + ["\t" * width for width in range(1, 9)]
    while len(found) < count:
        pieces = []
        for _ in range(draw.randint(1, 6)):
            text = draw.choice(_TEXTS)
            if draw.random() < 0.6:
                words = text.split(" ")
                start = draw.randrange(len(words))
                pieces.append(" ".join(words[start : start + draw.randint(1, 5)]))
            else:
                start = draw.randrange(len(text))
                pieces.append(text[start : start + draw.randint(1, 12)])
            pieces.append(draw.choice(_SPACES))
        found.append("".join(pieces))
    return found[:count]
