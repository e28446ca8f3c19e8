"""The outlined picture."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFont

from finecaption_hf.drawing import COLORS, MIN_SIDE, draw_regions, grow, ink, numbers
from finecaption_hf.drawing.captions import choose_font, drawable, wrap

GREY = (120, 120, 120)
SIZE = (900, 600)  # width, height; wide enough not to be enlarged


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new("RGB", size, GREY)


def box_mask(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def color_distance(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """(H, W): how far each pixel is from a colour, 0 to 255."""
    return np.abs(np.asarray(image).astype(int) - color).max(axis=2)


def test_picture_without_captions_keeps_its_size_and_the_input_is_untouched() -> None:
    image = picture()
    drawn = draw_regions(image, [box_mask(100, 100, 300, 300)])
    assert drawn.size == image.size
    assert not color_distance(image, GREY).any()


def test_outline_lies_around_the_region_and_the_rest_is_untouched() -> None:
    mask = box_mask(200, 150, 400, 350)
    drawn = draw_regions(picture(), [mask])
    line = color_distance(drawn, COLORS[0]) < 30
    assert line[148:150, 210:390].all() and line[350:352, 210:390].all()
    assert line[160:340, 198:200].all() and line[160:340, 400:402].all()
    assert not line[155:345, 205:395].any()  # the inside stays readable
    changed = color_distance(drawn, GREY) > 0
    assert not changed[:130].any() and not changed[370:].any() and not changed[:, :180].any()


def inside(mask: np.ndarray, margin: int) -> np.ndarray:
    """The part of a mask that is `margin` pixels away from what is outside."""
    return ~grow(~mask, margin)


@pytest.mark.parametrize("style", ["outline", "spotlight"])
@pytest.mark.parametrize("seed", [0, 1])
def test_colors_inside_regions_are_those_of_the_picture(style: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    rows, columns = np.ogrid[: SIZE[1], : SIZE[0]]
    masks = [box_mask(40, 30, 400, 300), (columns - 600) ** 2 + (rows - 300) ** 2 < 190**2]
    drawn = np.asarray(draw_regions(image, masks, style=style))
    for mask in masks:
        kept = (drawn == np.asarray(image)).all(axis=2)
        numbered = 20 * 20 * 4  # the disc with its number
        assert (~kept & inside(mask, 3)).sum() < numbered
    alone = np.asarray(draw_regions(image, masks[:1], style=style))  # without a number
    assert (alone == np.asarray(image)).all(axis=2)[inside(masks[0], 3)].all()


def test_spotlight_darkens_the_rest_and_fill_tints_the_region() -> None:
    mask = box_mask(200, 150, 400, 350)
    lit = np.asarray(draw_regions(picture(), [mask], style="spotlight"))
    assert (lit[:100] < 60).all() and (lit[200:300, 250:350] == GREY[0]).all()
    filled = color_distance(draw_regions(picture(), [mask], style="fill"), GREY)
    assert 0 < filled[180:320, 230:370].max() < 40
    assert not filled[:100].any()


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no style 'mask'\. There are: outline, spotlight, fill"):
        draw_regions(picture(), [], style="mask")


@pytest.mark.parametrize("where", [(0, 0), (450, 300), (899, 599)])
def test_region_of_one_pixel_is_visible(where: tuple[int, int]) -> None:
    x, y = where
    drawn = draw_regions(picture(), [box_mask(x, y, x + 1, y + 1)])
    assert (color_distance(drawn, COLORS[0]) < 40).sum() >= 5


def test_region_of_one_pixel_survives_enlarging() -> None:
    size = (100, 80)
    drawn = draw_regions(picture(size), [box_mask(50, 40, 51, 41, size)])
    assert drawn.width >= MIN_SIDE and drawn.width % size[0] == 0
    assert (color_distance(drawn, COLORS[0]) < 40).sum() >= 5


def test_whole_picture_as_region_gets_a_frame_and_no_tint() -> None:
    drawn = draw_regions(picture(), [box_mask(0, 0, *SIZE)])
    line = color_distance(drawn, COLORS[0]) < 30
    assert line[:2].all() and line[-2:].all() and line[:, :2].all() and line[:, -2:].all()
    assert not color_distance(drawn, GREY)[20:-20, 20:-20].any()


def test_several_regions_have_numbers_in_their_colors() -> None:
    masks = [box_mask(50, 50, 350, 550), box_mask(500, 50, 850, 550)]
    drawn = draw_regions(picture(), masks)
    for mask, color in zip(masks, COLORS, strict=False):
        assert (color_distance(drawn, color)[mask] < 30).sum() > 200  # the disc: the outline is outside of the mask
        assert (color_distance(drawn, (255, 255, 255))[mask] < 30).sum() > 20


def test_number_of_a_region_under_another_stays_visible() -> None:
    outer, inner = box_mask(100, 100, 800, 500), box_mask(300, 150, 600, 450)
    drawn = draw_regions(picture(), [outer, inner])
    only_outer = np.zeros_like(outer)
    only_outer[110:490, 110:790] = True
    only_outer[140:460, 290:610] = False
    assert ((color_distance(drawn, COLORS[0]) < 30) & only_outer).sum() > 100


def test_given_colors_are_used_in_turn() -> None:
    colors = [(0, 255, 255), (255, 255, 0)]
    masks = [box_mask(x, 100, x + 80, 180) for x in (50, 300, 550)]
    drawn = draw_regions(picture(), masks, colors=colors)
    for index, x in enumerate((50, 300, 550)):
        assert (color_distance(drawn, colors[index % 2]) < 30)[110:170, x - 2].all()


def test_given_numbers_take_the_place_of_those_from_one() -> None:
    masks = [box_mask(50, 50, 350, 550), box_mask(500, 50, 850, 550)]
    texts = ["a box", "another"]
    assert draw_regions(picture(), masks, texts, numbers=[1, 2]) == draw_regions(picture(), masks, texts)
    for captions in (None, texts[:1]):
        third, fourth = (np.asarray(draw_regions(picture(), masks[:1], captions, numbers=[n])) for n in (3, 4))
        plain = np.asarray(draw_regions(picture(), masks[:1], captions))
        for part in (np.s_[:600], np.s_[600:])[: 1 if captions is None else 2]:
            assert (third[part] != fourth[part]).any()
            assert (third[part] != plain[part]).any()


def test_captions_are_written_below_and_longer_ones_take_more_lines() -> None:
    mask = box_mask(100, 100, 300, 300)
    short = draw_regions(picture(), [mask], ["a box"])
    long = draw_regions(picture(), [mask], ["a box " * 80])
    lines = draw_regions(picture(), [mask], ["color: red\nshape: square"])
    assert SIZE[1] < short.height < lines.height < long.height
    assert (color_distance(short, (255, 255, 255))[SIZE[1] :] > 150).any()


def test_words_longer_than_a_line_stay_within_the_picture() -> None:
    drawn = draw_regions(picture(), [box_mask(100, 100, 300, 300)], ["a" * 400])
    panel = color_distance(drawn, (255, 255, 255))[SIZE[1] :]
    assert not panel[:, -10:].any()
    assert (panel > 150).any(axis=1).sum() > 40  # several lines


def test_words_of_any_length_are_broken_where_the_line_ends() -> None:
    font = choose_font("")
    word = "long-words" * 1000  # takes minutes if each line is looked for from the end of the word
    lines = wrap(word, font, 300)
    assert "".join(lines) == word
    assert all(font.getlength(line) <= 300 for line in lines)
    assert all(font.getlength(line + after[0]) > 300 for line, after in pairwise(lines))
    assert wrap("word", font, 1) == list("word")


@pytest.mark.parametrize("captions", [[{}], [{}, {"color": "red"}], [""]])
def test_regions_without_answers_are_drawn(captions: list[str | dict[str, str]]) -> None:
    mask = box_mask(100, 100, 300, 300)
    assert draw_regions(picture(), [mask] * len(captions), captions).size[0] == SIZE[0]


@pytest.mark.parametrize(
    "caption", ["", "naïve café", "Русский", "日本語の説明", "شرح", "🙂👍🏽", "a\u0301\u200b", "\ud800"]
)
def test_captions_in_any_script_are_drawn(caption: str) -> None:
    drawn = draw_regions(picture(), [box_mask(100, 100, 300, 300)], [caption])
    assert drawn.height > SIZE[1]


@pytest.mark.parametrize("size", [(3600, 1200), (120, 3000), (3000, 120)])
def test_region_of_one_pixel_is_visible_in_large_and_thin_pictures(size: tuple[int, int]) -> None:
    x, y = size[0] // 2, size[1] // 2
    drawn = draw_regions(picture(size), [box_mask(x, y, x + 1, y + 1, size)])
    stroke = round(max(size) * 0.0035)
    assert (color_distance(drawn, COLORS[0]) < 40).sum() > 2 * stroke**2


def test_outline_of_a_large_picture_follows_the_region() -> None:
    size = (3600, 1200)
    mask = box_mask(1003, 307, 3001, 904, size)
    line = color_distance(draw_regions(picture(size), [mask]), COLORS[0]) < 30
    assert not (line & mask)[315:895, 1010:2990].any()
    assert line[400:800, 992:1001].all() and line[400:800, 3003:3012].all()


ANSWERS = {f"Attribute {number}": "a middling answer of some words" for number in range(17)}


@pytest.mark.parametrize("size", [(900, 600), (600, 900), (100, 80), (3000, 2000), (4000, 100), (100, 4000)])
def test_many_answers_take_no_more_room_than_a_page(size: tuple[int, int]) -> None:
    masks = [box_mask(10 * number, 10, 10 * number + 8, 40, size) for number in range(3)]
    drawn = draw_regions(picture(size), masks, [ANSWERS] * 3)
    # Below or beside the picture, whose longer side is that of the page.
    longer, shorter = max(drawn.size), min(drawn.size)
    assert longer <= 2.2 * shorter
    assert longer <= 2.3 * max(size) * np.ceil(MIN_SIDE / max(size))


def test_questions_are_grey_before_their_answers() -> None:
    mask = box_mask(100, 100, 300, 300)
    drawn = draw_regions(picture(), [mask], [{"Color": "red", "Shape": "round"}])
    panel = np.asarray(drawn)[SIZE[1] :].astype(int)
    dark_columns = (panel.max(axis=2) < 60).any(axis=0)
    assert drawn.height == draw_regions(picture(), [mask], ["Color: red\nShape: round"]).height
    text_left = round(round(SIZE[0] * 0.021) * 3.2)
    assert not dark_columns[: text_left + 30].any() and dark_columns[text_left + 30 :].any()
    assert (panel.max(axis=2) < 140).any(axis=0)[text_left : text_left + 30].any()


def test_characters_that_the_font_lacks_are_written_as_plain_letters_or_code_points() -> None:
    font = choose_font("")  # Pillow's own
    assert drawable("a \U00012000 b", font) == "a \\U00012000 b"
    assert drawable("cafe\u0301 Ж", font) == "cafe \\u0416"
    # What has no shape would be a box.
    assert drawable("a\x00\x1b\u200b\u00ad\ufe0fb\tc\r\n d", font) == "ab c d"


def test_text_that_the_built_in_font_lacks_is_drawn_from_a_font_of_the_system() -> None:
    try:
        system = ImageFont.truetype("DejaVuSans.ttf", 16)
    except OSError:
        pytest.skip("DejaVuSans.ttf is not installed")
    font = choose_font("café – Ж ½")
    assert drawable("café – Ж ½", font) == "café – Ж ½"
    # The letter itself, not the box that fonts draw for all that they lack.
    assert bytes(font.getmask("Ж")) == bytes(system.getmask("Ж")) != bytes(font.getmask("\U0010ffff"))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_any_mode_are_drawn_on(mode: str) -> None:
    drawn = draw_regions(picture().convert(mode), [box_mask(100, 100, 300, 300)], ["a box"])
    assert drawn.mode == "RGB"


def test_mask_of_another_size_raises() -> None:
    with pytest.raises(ValueError, match=r"shape is \(900, 600\) but the image is 600x900"):
        draw_regions(picture(), [box_mask(0, 0, 10, 10).T])


def test_number_of_captions_that_differs_raises() -> None:
    with pytest.raises(ValueError, match="2 captions for 1 regions"):
        draw_regions(picture(), [box_mask(0, 0, 10, 10)], ["a", "b"])


def luminance(color: tuple[int, ...]) -> float:
    """Relative luminance of WCAG 2, from 0 to 1."""
    channels = [value / 255 for value in color]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", COLORS)
def test_white_digits_are_readable_on_every_color(color: tuple[int, int, int]) -> None:
    assert 1.05 / (luminance(color) + 0.05) >= 3  # what WCAG asks of large text and of graphics


@pytest.mark.parametrize("color", COLORS)
def test_numbers_of_pages_are_readable_on_every_color(color: tuple[int, int, int]) -> None:
    light, dark = sorted([luminance(color), 1.0 if ink(color) == "white" else 0.0], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


SATURATED = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]

# What people without red or green cones see, on linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, in which distances are as the eye judges them; 2 is just to be seen."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear.clip(0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colors_are_apart_for_the_color_blind(vision: str) -> None:
    values = np.array(COLORS) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = [lab(np.array(VISION[vision]) @ color) for color in linear]
    distances = np.array([[np.linalg.norm(a - b) for b in seen] for a in seen])
    neighbours = [distances[index, (index + 1) % len(seen)] for index in range(len(seen))]
    assert min(neighbours) > 35
    assert distances[~np.eye(len(seen), dtype=bool)].min() > 19


@pytest.mark.parametrize("behind", [*COLORS, *SATURATED, (255, 255, 255), (0, 0, 0), GREY])
@pytest.mark.parametrize("color", COLORS)
def test_outline_stands_out_from_a_picture_of_any_color(
    color: tuple[int, int, int], behind: tuple[int, int, int]
) -> None:
    drawn = draw_regions(Image.new("RGB", SIZE, behind), [box_mask(300, 200, 600, 400)], colors=[color])
    row = np.asarray(drawn)[300, 280:300]  # across the left side of the outline
    values = [luminance(tuple(pixel)) + 0.05 for pixel in [*row.tolist(), list(behind)]]
    assert max(values) / min(values) >= 2.5


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where numbers are drawn, (x, y)."""
    places: list[tuple[int, int]] = []
    badge = numbers.badge

    def note(picture: Image.Image, center: tuple[int, int], *rest: object) -> None:
        places.append(center)
        badge(picture, center, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(numbers, "badge", note)
    return places


NUMBER_RADIUS = round(round(SIZE[0] * 0.021) * 0.8)


@pytest.mark.parametrize("side", [2 * NUMBER_RADIUS + 2, 40, 300])
def test_numbers_of_one_region_given_several_times_do_not_cover_each_other(
    side: int, places: list[tuple[int, int]]
) -> None:
    draw_regions(picture(), [box_mask(300, 200, 300 + side, 200 + side)] * 4)
    assert len(places) == 4
    for index, place in enumerate(places):
        assert all(np.hypot(*np.subtract(place, other)) > 2 * NUMBER_RADIUS for other in places[:index])


@pytest.mark.parametrize("number", [12, 40])
def test_numbers_of_many_small_regions_do_not_cover_each_other_or_their_regions(
    number: int, places: list[tuple[int, int]]
) -> None:
    corners = np.random.default_rng(0).integers((400, 250), (520, 370), (number, 2))
    masks = [box_mask(x, y, x + 8, y + 8) for x, y in corners.tolist()]
    drawn = draw_regions(picture(), masks)
    assert len(places) == number
    radius = NUMBER_RADIUS
    for index, place in enumerate(places):
        assert radius <= place[0] < SIZE[0] - radius and radius <= place[1] < SIZE[1] - radius
        assert all(np.hypot(*np.subtract(place, other)) > 2 * radius for other in places[:index])
    discs = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    ys, xs = np.ogrid[: SIZE[1], : SIZE[0]]
    for x, y in places:
        discs |= (xs - x) ** 2 + (ys - y) ** 2 <= radius**2
    hidden = [float(discs[mask].mean()) for mask in masks]
    assert np.mean(hidden) < 0.1 and max(hidden) < 0.9
    assert drawn.size == SIZE
