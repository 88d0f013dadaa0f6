"""Draw bodybuilders on a contest stage: pictures of our own with known factors.

    python tests/draw_athletes.py

Reads   nothing, so that anybody can run the chain at once, without a crawl.
Writes  data/raw/000001.jpg and so on: JPEG, RGB, 320 x 320 pixels. One in ten has
        another size or shape, one in 25 is stored turned, with an EXIF orientation.
        data/raw/factors.csv: for each file what was drawn, in the upright picture:
            people  1, 2 or 3
            pose    0 (front relaxed, arms down) to 1 (front double biceps, fists up)
            skin    0 (fair) to 1 (dark)
            zoom    height of the athletes, 1 is usual
            shift   to the right, in parts of the shorter side of the picture
            width   breadth of the body, 1 is usual
            light   hue of the backdrop in degrees

A folder that holds anything else is left alone. 300 pictures take 7 s on two cores.
"""

import colorsys
import concurrent.futures
import contextlib
import os
import pathlib
import re
import struct
import sys
import time

import cv2
import numpy as np

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
# Files
OUT_DIR = "data/raw"  # a folder of its own; one that holds other files is refused

# Data
NUM_IMAGES = 300  # 1 to 999999; picture i is the same however many there are
IMAGE_SIZE = 320  # pixels, shorter side of most pictures, 64 to 1024
SEED = 0  # 0 or more; another number gives other pictures
# ----------------------------------------------------------------------------

COLUMNS = "file,people,pose,skin,zoom,shift,width,light"
SHAPES = ((1.334, 1), (1, 1.334), (2, 2))  # width, height in parts of IMAGE_SIZE
ORIENTATIONS = (6, 8, 3, 5)  # EXIF: turned to either side, upside down, mirrored

# The body is measured in head heights: y from the top of the skull down to the soles,
# x outward from the middle, z toward the viewer. One half of it is described.
BODY_HEIGHT = 7.6
TOP, BOTTOM = -0.25, 7.7  # ends of the picture of one athlete
BREADTH = 1.06  # of the usual body; the head keeps its own
HIP = 3.9  # y about which the leg turns

# Half widths of neck and trunk as (y, half width).
TRUNK = (
    (0.80, 0.28), (1.00, 0.32), (1.12, 0.48), (1.24, 0.70), (1.40, 0.90), (1.62, 1.03),
    (1.90, 1.13), (2.15, 1.15), (2.45, 1.02), (2.80, 0.80), (3.15, 0.66), (3.40, 0.67),
    (3.65, 0.73), (3.82, 0.70), (3.94, 0.50), (4.03, 0.20), (4.06, 0.10),
)  # fmt: skip
# Radii along a limb: (part of its length, inner radius, outer radius).
THIGH = (
    (0, 0.34, 0.34), (0.2, 0.44, 0.50), (0.45, 0.42, 0.50), (0.7, 0.35, 0.38),
    (0.9, 0.26, 0.26), (1, 0.23, 0.23),
)  # fmt: skip
CALF = (
    (0, 0.24, 0.24), (0.15, 0.24, 0.25), (0.33, 0.29, 0.33), (0.5, 0.25, 0.28),
    (0.75, 0.13, 0.15), (1, 0.13, 0.13),
)  # fmt: skip
FOREARM = ((0, 0.22, 0.22), (0.28, 0.31, 0.29), (0.6, 0.22, 0.22), (1, 0.14, 0.14))
HAND = ((0, 0.14, 0.14), (1, 0.17, 0.17))
# Muscles as ellipsoids: x, y, half width, half height, turn in degrees, z, thickness,
# how square they are (2 is round) and the width of the rounded seam.
TRUNK_MUSCLES = (
    (0.42, 1.38, 0.38, 0.07, -1, 0.23, 0.06, 2, 0.08),  # collarbone
    (0.17, 1.10, 0.07, 0.32, 16, 0.10, 0.13, 2, 0.06),  # cord of the neck
    (0.98, 2.12, 0.17, 0.46, 16, 0.04, 0.24, 2, 0.04),  # edge of the broad back
    (0.21, 2.40, 0.21, 0.16, 6, 0.34, 0.17, 2.6, 0.04),  # abdominals, four rows
    (0.20, 2.70, 0.20, 0.16, 2, 0.33, 0.17, 2.6, 0.04),
    (0.19, 3.00, 0.19, 0.16, -2, 0.31, 0.17, 2.6, 0.04),
    (0.17, 3.40, 0.18, 0.28, -8, 0.27, 0.15, 2.4, 0.04),
    (0.72, 2.36, 0.19, 0.10, 30, 0.20, 0.19, 2, 0.04),  # serratus, three ribs
    (0.65, 2.55, 0.18, 0.10, 34, 0.20, 0.18, 2, 0.04),
    (0.58, 2.74, 0.17, 0.10, 38, 0.20, 0.17, 2, 0.04),
    (0.49, 3.16, 0.17, 0.38, 10, 0.16, 0.20, 2.4, 0.04),  # oblique
    (0.00, 3.76, 0.64, 0.38, 0, 0.12, 0.27, 2, 0.08),  # trunks
)
LEG_MUSCLES = (
    (0.64, 4.70, 0.26, 0.80, -5, 0.20, 0.22, 2, 0.04),  # thigh: outer, middle, teardrop
    (0.43, 4.62, 0.17, 0.72, -8, 0.26, 0.18, 2, 0.04),
    (0.38, 5.18, 0.15, 0.30, -14, 0.20, 0.22, 2, 0.04),
    (0.84, 4.66, 0.13, 0.66, 3, 0.10, 0.20, 2, 0.04),  # sweep of the thigh
    (0.57, 5.62, 0.15, 0.17, 0, 0.18, 0.14, 2.4, 0.04),  # knee
    (0.76, 6.14, 0.13, 0.44, 3, 0.08, 0.19, 2, 0.04),  # calf: outer, inner, shin
    (0.45, 6.20, 0.11, 0.42, -2, 0.08, 0.18, 2, 0.04),
    (0.60, 6.36, 0.09, 0.62, -4, 0.15, 0.14, 2, 0.04),
    (0.71, 7.37, 0.17, 0.20, -24, 0.10, 0.26, 2.4, 0.04),  # foot, toes
    (0.66, 7.49, 0.075, 0.08, 0, 0.28, 0.10, 2, 0.04),
    (0.76, 7.49, 0.06, 0.07, 0, 0.26, 0.10, 2, 0.04),
    (0.85, 7.46, 0.055, 0.07, 0, 0.22, 0.10, 2, 0.04),
)
HEAD = (
    (0.37, 0.55, 0.07, 0.13, 0, 0.20, 0.10, 2, 0.04),  # ear
    (0.00, 0.43, 0.37, 0.43, 0, 0.25, 0.42, 2.2, 0.04),  # skull
    (0.00, 0.70, 0.29, 0.32, 0, 0.34, 0.32, 2.5, 0.04),  # jaw
    (0.20, 0.62, 0.12, 0.10, 20, 0.46, 0.14, 2, 0.10),  # cheek
    (0.00, 0.58, 0.05, 0.14, 0, 0.60, 0.14, 2, 0.04),  # nose and its wing
    (0.03, 0.68, 0.05, 0.04, 0, 0.64, 0.08, 2, 0.04),
    (0.00, 0.92, 0.12, 0.09, 0, 0.52, 0.14, 2, 0.04),  # chin
)


def joints(pose):
    """Return shoulder, elbow, wrist and fist at x > 0 as arrays (x, y)."""
    upper = np.radians(20 + 72 * pose)  # 0 is straight down, 90 outward, 180 up
    fore = np.radians(6 + 196 * pose)
    shoulder = np.array([0.98 + 0.04 * pose, 1.66 - 0.10 * pose])
    elbow = shoulder + 1.32 * np.array([np.sin(upper), np.cos(upper)])
    along = np.array([np.sin(fore), np.cos(fore)])
    along *= 1 - 0.22 * np.sin(np.pi * pose)  # half way it comes toward the viewer
    return shoulder, elbow, elbow + 1.08 * along, elbow + 1.36 * along


class Relief:
    """The half x > 0 of a body as heights toward the viewer, made of rounded parts."""

    def __init__(self, scale, reach, breadth):
        """Make an empty relief.

        Args:
            scale: pixels to a head height.
            reach: largest x that will be used.
            breadth: how much x is stretched in the picture.
        """
        columns = 2 * round(breadth * reach * scale / 2)
        rows = 2 * round((BOTTOM - TOP) * scale / 2)
        self.x = (np.arange(columns, dtype=np.float32) + 0.5) / (breadth * scale)
        self.y = (np.arange(rows, dtype=np.float32) + 0.5) / scale + TOP
        self.height = np.full((rows, columns), -1, np.float32)

    def window(self, points, reach):
        """Return the slices within `reach` of the points, and their x and y."""
        low, high = np.min(points, 0) - reach, np.max(points, 0) + reach
        columns = slice(*np.searchsorted(self.x, (low[0], high[0])))
        rows = slice(*np.searchsorted(self.y, (low[1], high[1])))
        return (rows, columns), self.x[None, columns], self.y[rows, None]

    def join(self, place, bulge, z, blend):
        """Raise the relief to `z` where `bulge` > 0, with a rounded seam."""
        old = self.height[place]
        seam = np.maximum(blend - np.abs(old - z), 0)
        new = np.maximum(old, z) + seam * seam * (0.25 / blend)
        np.copyto(old, new, where=bulge > 0)

    def limb(self, start, end, profile, depth=0.0, flat=1.0):
        """Add a part that is round about the axis from start to end.

        Args:
            start, end: (x, y).
            profile: rows of (part of the length, radius on the right as seen along
                the axis, radius on the left).
            depth: z of the axis.
            flat: thickness in parts of the radius.
        """
        knots = np.array(profile, np.float32).T
        t = np.linspace(0, 1, 49, dtype=np.float32)
        radii = [np.pad(np.interp(t, knots[0], r), 3, "edge") for r in knots[1:]]
        radii = [np.convolve(r, np.full(7, 1 / 7), "valid") for r in radii]
        place, x, y = self.window((start, end), knots[1:].max())
        (x0, y0), (x1, y1) = np.float32(start), np.float32(end)
        length = np.hypot(x1 - x0, y1 - y0)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        along = ((x - x0) * ux + (y - y0) * uy) / length
        side = (y - y0) * ux - (x - x0) * uy
        right, left = (np.interp(along, t, r).astype(np.float32) for r in radii)
        radius = left + (right - left) * np.clip(side / (right + left) + 0.5, 0, 1)
        beyond = (along - np.clip(along, 0, 1)) * length
        bulge = radius * radius - side * side - beyond * beyond
        self.join(place, bulge, depth + flat * np.sqrt(np.maximum(bulge, 0)), 0.06)

    def ellipsoid(self, x, y, half_x, half_y, turn, z, thick, power=2, blend=0.04):
        """Add an ellipsoid about (x, y, z); see the tables of muscles."""
        place, dx, dy = self.window(((x, y),), 1.25 * max(half_x, half_y))
        c, s = (
            np.float32(np.cos(np.radians(turn))),
            np.float32(np.sin(np.radians(turn))),
        )
        dx, dy = dx - np.float32(x), dy - np.float32(y)
        u, v = (dx * c + dy * s) / half_x, (dy * c - dx * s) / half_y
        if power == 2:
            bulge = 1 - u * u - v * v
        else:
            bulge = 1 - np.abs(u) ** power - np.abs(v) ** power
        self.join(place, bulge, z + thick * np.sqrt(np.maximum(bulge, 0)), blend)

    def groove(self, start, end, width, depth):
        """Carve a line."""
        place, x, y = self.window((start, end), 2.5 * width)
        (x0, y0), (x1, y1) = start, end
        x, y = x - x0, y - y0
        dx, dy = x1 - x0, y1 - y0
        t = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
        away = (x - t * dx) ** 2 + (y - t * dy) ** 2
        self.height[place] -= depth * np.exp(away / -(width**2))


def build_body(scale, pose, width):
    """Return the relief of an athlete; arguments as of `draw_athlete`."""
    breadth = BREADTH * width
    body = Relief(scale, max(x for x, _ in joints(pose)) + 0.35, breadth)
    add_leg(body, 0.13 * pose - 0.03)
    knots = np.array(TRUNK)
    knots[5:9, 1] += 0.10 * pose  # the broad back spreads
    t = (knots[:, 0] - knots[0, 0]) / np.ptp(knots[:, 0])
    profile = np.stack([t, knots[:, 1], knots[:, 1]], 1)
    body.limb((0, knots[0, 0]), (0, knots[-1, 0]), profile, flat=0.40)
    # Raised arms pull the pectoral up.
    chest, turn = 1.86 - 0.04 * pose, 6 - 20 * pose
    body.ellipsoid(0.50, chest, 0.56, 0.40, turn, 0.30, 0.29, 2.6, 0.05)
    for muscle in TRUNK_MUSCLES:
        body.ellipsoid(*muscle)
    add_arm(body, pose)
    for x, y, half_x, *rest in HEAD:
        body.ellipsoid(x / breadth, y, half_x / breadth, *rest)
    body.groove((0.09, 0.50), (0.22, 0.50), 0.06, 0.08)  # eye socket, mouth
    body.groove((0, 0.815), (0.12, 0.795), 0.02, 0.03)
    return body


def add_leg(body, lean):
    """Add a leg that leans outward by `lean` of its length."""
    points = ((0.46, HIP), (0.57, 5.62), (0.62, 7.20))
    hip, knee, ankle = ((x + lean * (y - HIP), y) for x, y in points)
    body.limb(knee, ankle, CALF)
    body.limb(hip, knee, THIGH, flat=0.75)
    for x, y, half_x, half_y, turn, *rest in LEG_MUSCLES:
        turned = turn - np.degrees(lean)
        body.ellipsoid(x + lean * (y - HIP), y, half_x, half_y, turned, *rest)


def add_arm(body, pose):
    """Add an arm, whose biceps swells and comes into profile as the elbow bends."""
    shoulder, elbow, wrist, fist = joints(pose)
    triceps = 0.36 + 0.05 * pose
    upper = ((0, 0.32, 0.28), (0.45, triceps, 0.31), (0.8, 0.29, 0.26), (1, 0.22, 0.22))
    body.limb(shoulder, elbow, upper, 0.09)
    body.limb(elbow, wrist, FOREARM, 0.12)
    body.limb(wrist, fist, HAND, 0.16)
    along, across, turn = direction(elbow, wrist)
    body.ellipsoid(*elbow + 0.36 * along, 0.36, 0.14, turn, 0.26, 0.18)
    for k in (-1.5, -0.5, 0.5, 1.5):  # fingers, then the thumb
        finger = fist + 0.07 * along + 0.085 * k * across
        body.ellipsoid(*finger, 0.12, 0.055, turn, 0.27, 0.12)
    thumb = fist - 0.04 * along - 0.17 * across
    body.ellipsoid(*thumb, 0.14, 0.07, turn + 25, 0.24, 0.12)
    along, across, turn = direction(shoulder, elbow)
    biceps = shoulder + 0.76 * along + (0.04 + 0.20 * pose) * across
    body.ellipsoid(*biceps, 0.44 - 0.06 * pose, 0.21 + 0.09 * pose, turn, 0.24, 0.24)
    deltoid = shoulder + 0.20 * along + (0.12 - 0.06 * pose) * across
    body.ellipsoid(*deltoid, 0.52, 0.34, turn, 0.16, 0.34, 2.2, 0.08)


def direction(start, end):
    """Return unit vectors along and to the left of a line, and its angle in degrees."""
    along = (end - start) / np.hypot(*(end - start))
    return along, along[::-1] * (1, -1), np.degrees(np.arctan2(along[1], along[0]))


def draw_athlete(height, pose, skin=0.5, width=1.0, trunks=0):
    """Draw one athlete from the front.

    Args:
        height: pixels from the top of the skull to the soles.
        pose, skin, width: factors, see the top of this file.
        trunks: hue of the trunks in degrees.

    Returns:
        The picture, uint8 (H, W, 3), RGB; the mask, uint8 (H, W), 0 to 255; and the
        box of the mask as (x, y, width, height) in pixels.
    """
    scale = 2 * height / BODY_HEIGHT  # drawn twice as large, then shrunk
    body = build_body(scale, pose, width)
    kind = materials(body.x[None], body.y[:, None], BREADTH * width)
    relief, kind = (
        np.concatenate([half[:, ::-1], half], 1) for half in (body.height, kind)
    )
    inside = relief > -0.9
    light = shade(np.maximum(relief, -0.25), scale)
    light[~inside] = 20  # the edge is mixed with what is beyond it: a dark outline
    picture = cv2.applyColorMap(light, skin_colors(skin)[:, None])
    hair, eyes = cloth_colors(25, 0.5, 0.16, 0.2), cloth_colors(36, 0.05, 1)
    for number, colors in enumerate((cloth_colors(trunks), hair, eyes), 1):
        here = (kind == number) & inside
        picture[here] = colors[light[here]]
    mask = cv2.GaussianBlur(inside.astype(np.uint8) * 255, (3, 3), 0)
    picture, mask = (
        cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for image in (picture, mask)
    )
    return picture, mask, cv2.boundingRect((mask > 127).astype(np.uint8))


def materials(x, y, breadth):
    """Return what the half x > 0 is made of, uint8 (rows of y, columns of x).

    0 is skin, 1 the trunks, 2 hair, 3 the white of the eyes.
    """
    kind = np.zeros((y.size, x.size), np.uint8)
    kind[(x < 1) & (y > 3.60 - 0.1 * x * x) & (y < 4.42 - 1.6 * x + 0.88 * x * x)] = 1
    x = x * breadth
    kind[((x - 0.15) / 0.065) ** 2 + ((y - 0.515) / 0.03) ** 2 < 1] = 3
    kind[((x - 0.145) / 0.028) ** 2 + ((y - 0.512) / 0.03) ** 2 < 1] = 2
    brow = np.abs(y - 0.43 + 0.12 * (x - 0.15)) < 0.025
    hair = (y < 0.23 + 2 * np.maximum(x - 0.24, 0)) & (y < 0.5) & (x < 0.35)
    kind[hair | brow & (x > 0.06) & (x < 0.25)] = 2
    return kind


def shade(relief, scale):
    """Return the light on a relief, uint8 (H, W): 0 is dark, 255 a highlight.

    A lamp above and to the left, its gloss on oiled skin, a rim at both sides; hollows
    are darker, and what lies under something that juts out is in its shadow.
    """
    relief = cv2.GaussianBlur(relief, (0, 0), 0.012 * scale)
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=scale / 8)
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=scale / 8)
    facing = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    key = (0.30 * slope_x + 0.66 * slope_y + 0.50) * facing
    gloss = np.maximum((0.24 * slope_x + 0.48 * slope_y + 0.84) * facing, 0)
    for _ in range(5):  # to the power of 32
        gloss *= gloss
    rim = np.clip(np.abs(slope_x) * facing - 0.75, 0, 1)
    hollow = relief - cv2.GaussianBlur(relief, (0, 0), 0.08 * scale)
    small = cv2.resize(relief, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 0.05 * scale)
    down = max(round(0.03 * scale), 1)
    small = np.pad(small, ((down, 0), (0, 0)), "edge")[:-down]
    shadow = relief - cv2.resize(small, relief.shape[::-1])
    light = 0.09 + 0.76 * np.maximum(key, 0) + 0.40 * gloss + 0.70 * rim
    light += 1.8 * np.clip(hollow, -0.12, 0.05) + 0.9 * np.clip(shadow, -0.25, 0.05)
    return (255 * np.clip(light, 0, 1)).astype(np.uint8)


def skin_colors(skin):
    """Return the colours of skin from shadow to highlight, uint8 (256, 3), RGB."""
    fair = np.array([[84, 30, 22], [196, 108, 66], [240, 170, 116], [255, 244, 222]])
    dark = np.array([[30, 10, 8], [104, 52, 32], [172, 100, 62], [255, 226, 190]])
    return gradient((1 - skin) * fair + skin * dark, (10, 90, 165, 255))


def cloth_colors(hue, saturation=0.85, value=0.8, sheen=0.5):
    """Return the colours of a cloth from shadow to highlight, uint8 (256, 3), RGB."""
    color = 255 * np.array(colorsys.hsv_to_rgb(hue / 360, saturation, value))
    stops = np.stack([0.08 * color, 0.9 * color, (1 - sheen) * color + sheen * 255])
    return gradient(stops, (0, 125, 255))


def gradient(stops, places):
    """Return 256 colours that run through the stops (n, 3) at the places, uint8."""
    levels = np.arange(256)
    channels = [np.interp(levels, places, channel) for channel in stops.T]
    return np.stack(channels, 1).astype(np.uint8)


def draw_stage(width, height, light):
    """Draw an empty stage that fills the picture, float32 (height, width, 3), 0 to 1.

    Its x and y run from -1 to 1 over the square in the middle of the picture.
    """
    side = min(width, height)
    x = np.arange(1 - width, width, 2, dtype=np.float32)[None] / side
    y = np.arange(1 - height, height, 2, dtype=np.float32)[:, None] / side
    # Equally bright at each hue.
    wall = np.array(colorsys.hsv_to_rgb(light / 360, 0.6, 1), np.float32)
    wall *= 0.36 / (wall @ np.array([0.299, 0.587, 0.114], np.float32))
    folds = 1 + 0.10 * np.cos(26 * x + 1.4 * np.sin(9 * x * x))
    glow = np.exp(-x * x / 0.45) * np.exp(-((y + 0.15) ** 2) / 0.7)
    spread, middle = 0.05 + 0.15 * np.maximum(y + 1, 0), 0.6 * (y + 0.1)
    beams = sum(np.exp(-(((x - m) / spread) ** 2)) for m in (middle, -middle))
    beams *= np.clip(0.75 - 0.6 * y, 0, 1) * np.clip(20 * (y + 0.98), 0, 1)
    lamps = np.exp(-((np.abs(x) - 0.51) ** 2 + (y + 0.95) ** 2) / 0.0016)
    back = ((0.16 + 0.75 * glow) * folds + 0.22 * beams)[..., None] * wall
    back += (0.05 * beams + 0.10 * glow * glow + lamps)[..., None]
    # The floor: boards that run to the back, a pool of light, the wall's reflection.
    edge = 0.66
    deep = np.maximum(y - edge, 0)
    board = np.mod(x / (deep + 0.5) * 3.5 + 0.5, 1)
    seams = np.abs(board - 0.5) < 0.02 / (deep + 0.5)
    pool = np.exp(-x * x / 0.7) * np.exp(-((y - 0.86) ** 2) / 0.02)
    wood = np.array([0.40, 0.25, 0.16], np.float32)
    floor = ((0.22 + 0.85 * pool) * (1 - 0.25 * seams))[..., None] * wood
    floor += (0.35 * np.exp(-x * x / 0.5) * np.exp(-9 * deep))[..., None] * wall
    return np.where(y[..., None] > edge, floor, back).astype(np.float32)


def draw_picture(factors, width, height):
    """Draw a stage with athletes, uint8 (height, width, 3), RGB.

    Args:
        factors: {column: value} as in factors.csv, without `file`.
        width, height: pixels; the athletes stand in the square in the middle.
    """
    picture = draw_stage(width, height, factors["light"])
    side, people = min(width, height), factors["people"]
    tall = side * (0.90, 0.75, 0.63)[people - 1] * factors["zoom"]
    apart = side * (0, 0.35, 0.31)[people - 1]
    soles = height / 2 + side * (0.46, 0.445, 0.43)[people - 1]
    middle = width / 2 + side * factors["shift"]
    # Those at the sides stand a little behind, so they come first.
    for place in ((0,), (-0.5, 0.5), (-1, 1, 0))[people - 1]:
        athlete = draw_athlete(
            round(tall * (1.03 - 0.05 * abs(place))),
            factors["pose"],
            factors["skin"],
            factors["width"],
            trunks=0 if place == 0 else 215,
        )
        behind = 0.02 * side * abs(place)
        stand(picture, athlete, middle + apart * place, soles - behind)
    return (255 * np.clip(picture, 0, 1) + 0.5).astype(np.uint8)


def stand(picture, athlete, middle, soles):
    """Put an athlete on a picture, in place, with a shadow and a reflection.

    Args:
        picture: float32 (H, W, 3), 0 to 1.
        athlete: what `draw_athlete` returns.
        middle, soles: x of the middle of the body and y of the soles, in pixels.
    """
    colors, mask, (_, top, _, tall) = athlete
    left, bottom, soles = round(middle - mask.shape[1] / 2), top + tall, round(soles)
    shadow = np.zeros(picture.shape[:2], np.float32)
    axes = (round(0.17 * tall), round(0.025 * tall))
    cv2.ellipse(shadow, (round(middle), soles), axes, 0, 0, 360, 1, -1)
    picture *= 1 - 0.6 * cv2.GaussianBlur(shadow, (0, 0), 0.02 * tall)[..., None]
    alpha = mask / np.float32(255)
    depth = round(0.2 * tall)
    upward = slice(bottom - 1, bottom - 1 - depth, -1)
    fade = np.linspace(0.35, 0, depth, dtype=np.float32)[:, None]
    blend(picture, colors[upward], alpha[upward] * fade, left, soles)
    blend(picture, colors, alpha, left, soles - bottom)


def blend(picture, colors, alpha, left, top):
    """Lay uint8 colours over a picture, in place; what juts out is cut off."""
    height, width = picture.shape[:2]
    rows = slice(max(-top, 0), max(height - top, 0))
    columns = slice(max(-left, 0), max(width - left, 0))
    colors, alpha = colors[rows, columns] / np.float32(255), alpha[rows, columns, None]
    target = picture[max(top, 0) :, max(left, 0) :][: alpha.shape[0], : alpha.shape[1]]
    target += alpha * (colors - target)


def draw_factors(seed, index):
    """Return {column: value} of a picture, whatever the number of pictures.

    `people` and `pose` change most pixels; the others are kept mild beside them.
    """
    random = np.random.default_rng([seed, index])
    return {
        "people": int(random.integers(1, 4)),
        "pose": round(random.uniform(0, 1), 4),
        "skin": round(random.uniform(0.3, 0.7), 4),
        "zoom": round(random.uniform(0.985, 1.015), 4),
        "shift": round(random.uniform(-0.008, 0.008), 4),
        "width": round(random.uniform(0.96, 1.04), 4),
        "light": round(random.uniform(215, 255), 1),
    }


def encode(picture, orientation):
    """Return JPEG bytes that a viewer shows as `picture`.

    Args:
        picture: uint8 (H, W, 3), RGB.
        orientation: of EXIF, 1 to 8: how the pixels are stored.
    """
    if orientation in (2, 4, 5, 7):
        picture = picture[:, ::-1]
    picture = np.rot90(picture, (0, 0, 2, 2, 1, 1, 3, 3)[orientation - 1])
    pixels = np.ascontiguousarray(picture[..., ::-1])  # OpenCV takes BGR
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    if orientation == 1:
        return data
    # EXIF is a TIFF directory with one entry (tag 274, one 16-bit number) in an APP1
    # segment, here after the segment that opens the file (marker, then its length).
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
    start = 4 + struct.unpack(">H", data[4:6])[0]
    return data[:start] + segment + data[start:]


def draw_file(path, index, factors, image_size):
    """Draw picture `index` into a file and return the number of its bytes."""
    shape, orientation = (1, 1), 1
    if index % 10 == 3:
        shape = SHAPES[index // 10 % len(SHAPES)]
    if index % 25 == 9:
        orientation = ORIENTATIONS[index // 25 % len(ORIENTATIONS)]
    width, height = (round(image_size * part) for part in shape)
    data = encode(draw_picture(factors, width, height), orientation)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def read_table(out_dir):
    """Return {file: row} of an earlier run; end the script if the folder holds more."""
    if not out_dir.exists():
        return {}
    if not out_dir.is_dir():
        sys.exit(f"{out_dir.resolve()} is not a folder. Set OUT_DIR to another place.")
    table, rows = out_dir / "factors.csv", {}
    ours = set()
    if table.is_file():
        header, *lines = table.read_text("utf-8", "replace").splitlines() or [""]
        if header == COLUMNS:
            rows = {line.split(",")[0]: line for line in lines}
            rows = {k: v for k, v in rows.items() if re.fullmatch(r"\d{6}\.jpg", k)}
            ours = {table.name, *rows}
    names = (path.name for path in out_dir.iterdir() if path.name[0] != ".")
    foreign = sorted(set(names) - ours)
    if foreign:
        sys.exit(
            f"{out_dir.resolve()} holds files that this script did not draw "
            f"({len(foreign)}, such as {foreign[-1]}). Drawn pictures are not mixed "
            "with others: nothing was changed. Set OUT_DIR to a folder of its own."
        )
    return rows


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path` and rename it to `path` on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_settings(num_images, image_size, seed):
    """End the script if a number is not a whole one within its limits."""
    for name, value, low, high in (
        ("NUM_IMAGES", num_images, 1, 999_999),
        ("IMAGE_SIZE", image_size, 64, 1024),
        ("SEED", seed, 0, 2**63),
    ):
        if not isinstance(value, int) or not low <= value <= high:
            sys.exit(f"{name} is {value!r}; set a whole number from {low} to {high}.")


def main():
    """Draw the pictures and the table of their factors."""
    started = time.perf_counter()
    check_settings(NUM_IMAGES, IMAGE_SIZE, SEED)
    out_dir = pathlib.Path(OUT_DIR)
    old = read_table(out_dir)
    print(f"Drawing {NUM_IMAGES} pictures ({IMAGE_SIZE} pixels) into {out_dir}")
    factors = [draw_factors(SEED, index) for index in range(NUM_IMAGES)]
    files = [f"{index + 1:06d}.jpg" for index in range(NUM_IMAGES)]
    rows = {
        file: ",".join([file, *map(str, values.values())])
        for file, values in zip(files, factors, strict=True)
    }
    # In this order each picture in the folder has its true row at any moment, so that
    # a run that was killed can be run again.
    for file in old:
        if rows.get(file) != old[file]:
            (out_dir / file).unlink(missing_ok=True)
    with replacing(out_dir / "factors.csv") as temporary:
        text = "\n".join([COLUMNS, *rows.values(), ""])
        temporary.write_text(text, encoding="utf-8", newline="\n")
    print(f"Wrote {out_dir / 'factors.csv'} ({NUM_IMAGES} rows)")
    cv2.setNumThreads(1)  # each picture has its own thread
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [out_dir / file for file in files]
        sizes = [IMAGE_SIZE] * NUM_IMAGES
        total = sum(pool.map(draw_file, paths, range(NUM_IMAGES), factors, sizes))
    print(
        f"Wrote {out_dir} ({NUM_IMAGES} JPEG files, {total / 1e6:.1f} MB) "
        f"in {time.perf_counter() - started:.1f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"{error}. Check the disk and OUT_DIR, then run this script again.")
    except KeyboardInterrupt:
        print("Stopped. Each picture is whole; run this again.", file=sys.stderr)
        sys.exit(130)
