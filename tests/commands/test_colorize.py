import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from crosschannel import UserError, load_colorizer
from crosschannel.cli import main
from crosschannel.color import lab_to_rgb, rgb_to_lab
from crosschannel.colorize.upsampling import upsample_rows
from crosschannel.data.decode import BrokenImage, decode


def lightness(pixels):
    return rgb_to_lab(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])[0, 0]


def colour(run, tmp_path, *images, **options):
    out = tmp_path / "out"
    flags = [f"--{key}={value}" for key, value in options.items()]
    assert main(["colorize", *map(str, images), "--model", str(run), "--out", str(out), *flags]) == 0
    return out


def test_pictures_keep_their_size_and_lightness(finished_run, tmp_path, photos):
    for name, pixels in {"a": photos[0], "b": photos[1][:97, :33], "c": photos[2]}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    out = colour(finished_run, tmp_path, *(tmp_path / f"{n}.png" for n in "abc"))
    for name in "abc":
        before = np.asarray(Image.open(tmp_path / f"{name}.png"))
        after = np.asarray(Image.open(out / f"{name}.png"))
        assert after.shape == before.shape and not np.array_equal(after, before)
        difference = (lightness(after) - lightness(before)).abs()
        assert difference.mean() < 0.3 and difference.max() < 1.5  # the rounding to 8 bits


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (7, 3), (2000, 30)])
def test_any_size(finished_run, size):
    picture = Image.effect_noise(size, 60)
    assert load_colorizer(str(finished_run))(picture).size == size


def test_only_the_lightness_of_the_input_matters(finished_run, photos):
    colorizer = load_colorizer(str(finished_run))
    grey = Image.fromarray(photos[1]).convert("L")
    from_grey, from_rgb = colorizer(grey), colorizer(grey.convert("RGB"))
    assert from_grey.tobytes() == from_rgb.tobytes()


def test_arrays_images_and_batches_come_back_as_they_went_in(finished_run, photos):
    colorizer = load_colorizer(str(finished_run))
    array = photos[0][:64, :80]
    expected = colorizer(array)
    assert expected.dtype == np.uint8 and expected.shape == (64, 80, 3)
    assert np.array_equal(np.asarray(colorizer(Image.fromarray(array))), expected)
    batch = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255
    coloured = colorizer(batch.repeat(2, 1, 1, 1))
    assert coloured.shape == (2, 3, 64, 80) and coloured.dtype == torch.float32
    as_array = (coloured[1] * 255).permute(1, 2, 0).numpy()  # not rounded on its way, as pictures of 8 bits are
    assert np.abs(as_array - expected).max() < 2.5 and not np.array_equal(as_array, as_array.round())
    assert colorizer(array[:, :, 0]).shape == (64, 80, 3)
    white = torch.full((1, 3, 16, 16), 1.004)  # such as a resampling leaves
    assert colorizer(white).min() > 0.8


def test_temperature_changes_how_vivid_it_is(finished_run, photos):
    colorizer = load_colorizer(str(finished_run))
    lab = torch.from_numpy(photos[0].copy()).permute(2, 0, 1)[None]
    chroma = [colorizer.predict_ab(rgb_to_lab(lab)[:, :1], t).norm(dim=1).mean() for t in (0.1, 0.38, 1.0)]
    assert chroma[0] > chroma[1] > chroma[2]


def test_folders_depth_formats_and_names_that_collide(finished_run, tmp_path, photos):
    source = tmp_path / "in"
    (source / "deep" / "er").mkdir(parents=True)
    small = Image.fromarray(photos[3][:40, :50])
    small.save(source / "x.png"), small.save(source / "x.jpg"), small.save(source / "deep" / "er" / "y.webp")
    out = colour(finished_run, tmp_path, source, format="jpeg")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("[!.]*.*")) == ["deep/er/y.jpg", "x-1.jpg", "x.jpg"]
    assert Image.open(out / "x.jpg").format == "JPEG"


def test_exif_orientation_is_applied(finished_run, tmp_path, photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photos[1][:40, :90]).save(tmp_path / "turned.jpg", exif=exif)
    picture = Image.open(colour(finished_run, tmp_path, tmp_path / "turned.jpg") / "turned.png")
    assert picture.size == (40, 90) and picture.getexif().get(0x0112, 1) == 1


def test_an_icc_profile_is_applied(finished_run, tmp_path):
    """A picture in a linear-light profile must come out as light as it looks, not as its numbers say."""
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    data = bytearray(linear.tobytes())
    count = int.from_bytes(data[128:132], "big")
    for i in range(count):  # make the tone curves linear: a 'para' curve of type 0 with gamma 1
        entry = 132 + 12 * i
        if bytes(data[entry : entry + 4]) in (b"rTRC", b"gTRC", b"bTRC"):
            offset = int.from_bytes(data[entry + 4 : entry + 8], "big")
            data[offset : offset + 16] = b"para" + bytes(8) + (1 << 16).to_bytes(4, "big")
    Image.new("RGB", (32, 32), (55, 55, 55)).save(tmp_path / "linear.png", icc_profile=bytes(data))
    out = colour(finished_run, tmp_path, tmp_path / "linear.png")
    expected = 1.055 * (55 / 255) ** (1 / 2.4) - 0.055  # linear light to sRGB
    target = lightness(np.full((1, 1, 3), round(expected * 255), np.uint8))[0, 0]
    coloured = Image.open(out / "linear.png")
    assert coloured.info["icc_profile"] == bytes(data)  # and it is in its space again
    seen = ImageCms.profileToProfile(coloured, ImageCms.ImageCmsProfile(io.BytesIO(bytes(data))), linear)
    assert lightness(np.asarray(seen)).mean() == pytest.approx(target.item(), abs=1)
    Image.new("RGB", (32, 32), (55, 55, 55)).save(tmp_path / "damaged.png", icc_profile=bytes(data[:200]))
    Image.new("RGB", (32, 32), (55, 55, 55)).save(tmp_path / "plain.png")
    out = colour(finished_run, tmp_path, tmp_path / "damaged.png", tmp_path / "plain.png")
    assert Image.open(out / "damaged.png").tobytes() == Image.open(out / "plain.png").tobytes()  # taken as it is


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1"])
def test_every_mode_of_picture(finished_run, tmp_path, mode, photos):
    picture = Image.fromarray(photos[0][100:140, 100:150])
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    name = "x.jpg" if mode == "CMYK" else "x.png"
    picture.save(tmp_path / name)
    coloured = Image.open(colour(finished_run, tmp_path, tmp_path / name) / "x.png")
    assert coloured.size == (50, 40)
    assert coloured.mode == ("RGBA" if mode in ("LA", "RGBA") else "RGB")
    if coloured.mode == "RGBA":
        assert np.array_equal(coloured.getchannel("A"), picture.getchannel("A"))


def test_a_large_picture_needs_little_memory(finished_run, tmp_path, photos):
    """2000 × 1500 within 128 MiB above the program's own memory; a dozen float copies would need 450."""
    big = np.tile(photos[0], (4, 6, 1))[:1500, :2000]
    Image.fromarray(big).save(tmp_path / "big.jpg", quality=80)
    Image.fromarray(big[:64, :64]).save(tmp_path / "small.jpg")
    code = (
        "import sys; from crosschannel.cli import main\n"
        "for name in ('small', 'big'):\n"
        "    if main(['colorize', f'{name}.jpg', *sys.argv[1:], f'--out={name}']): sys.exit(name)\n"
        "    print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    words = [sys.executable, "-c", code, f"--model={finished_run}", "--format=jpeg"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "big" / "big.jpg").size == (2000, 1500)
    small, large = (int(line) * 1024 for line in done.stdout.splitlines() if line.isdigit())
    assert 0 < large - small < 1 << 27


def test_ab_lands_on_the_pixels_it_was_predicted_for():
    """ab of every 8th pixel of a linear ramp, brought to twice the size, is the ramp at the pixel centres."""
    ab = (torch.arange(6.0) * 8)[None, None, None].expand(1, 2, 6, 6)  # value = pixel of the net's input
    grid = {"scale": (1 / 16, 1 / 16), "offset": 1 / 16}
    full = upsample_rows(ab, slice(0, 80), 80, **grid)
    centres = (torch.arange(80) + 0.5) * 0.5 - 0.5
    assert torch.allclose(full[0, 0, 10], centres.clamp(0, 40), atol=1e-3)
    strips = torch.cat([upsample_rows(ab, slice(a, a + 16), 80, **grid) for a in range(0, 80, 16)], 2)
    assert torch.allclose(strips, full, atol=1e-4)


def test_the_sample_photographs_by_name(finished_run, tmp_path):
    out = colour(finished_run, tmp_path, "builtin:sample", size=64)
    assert len(list(out.glob("*.png"))) == 10 and (out / "chelsea.png").is_file()


@pytest.mark.parametrize("kind", ["one channel", "16 bit", "sepia", "grey with alpha"])
def test_grey_scans_keep_their_lightness_and_are_coloured_alike(finished_run, tmp_path, photos, kind):
    """Whatever a scan is stored as, what counts is how light it is."""
    grey = np.asarray(Image.fromarray(photos[1][:60, :80]).convert("L"))
    scan = Image.fromarray(grey)
    if kind == "16 bit":
        scan = Image.fromarray(grey.astype(np.uint16) * 257)
    elif kind == "sepia":
        toned = np.stack([grey * 0.95 + 12, grey * 0.85, grey * 0.65], 2)
        scan = Image.fromarray(toned.round().clip(0, 255).astype(np.uint8))
    elif kind == "grey with alpha":
        scan.putalpha(Image.linear_gradient("L").resize(scan.size))
    scan.save(tmp_path / "scan.png")
    out = Image.open(colour(finished_run, tmp_path, tmp_path / "scan.png") / "scan.png")
    before = lightness(np.asarray(scan.convert("RGB")) if kind == "sepia" else np.repeat(grey[:, :, None], 3, 2))
    assert (lightness(out.convert("RGB")) - before).abs().max() < 1.5
    if kind == "grey with alpha":
        assert np.array_equal(out.getchannel("A"), scan.getchannel("A"))
    if kind == "sepia":  # the tone says nothing of the colours
        untoned = lab_to_rgb(torch.cat((before[None, None], torch.zeros(1, 2, 60, 80)), 1))
        expected = load_colorizer(str(finished_run))((untoned[0].permute(1, 2, 0) * 255).round().byte().numpy())
        assert np.abs(np.asarray(out).astype(int) - expected).max() < 12


def test_odd_files_are_read_as_the_loader_reads_them(finished_run, tmp_path, photos, capsys):
    """A faulty JPEG, a turned one, samples of other types: the same lightness, or the same refusal."""
    file = io.BytesIO()
    Image.fromarray(photos[1][:48, :64]).save(file, "JPEG", xmp=b'<x tiff:Orientation="6"/>')
    jpeg = file.getvalue()
    files = {
        "extraneous.jpg": jpeg[:-2] + bytes(97) + jpeg[-2:],
        "revision.jpg": jpeg[:11] + b"\0\0" + jpeg[13:],
        "turned.jpg": jpeg,
        "cut.jpg": jpeg[:900],
    }
    tiffs = {
        "planes.tif": np.moveaxis(photos[1][:48, :64].astype(np.uint16) * 257, -1, 0),
        "white.tif": photos[1][:48, :64] * np.float32(257),
        "wide.tif": photos[1][:48, :64, 0].astype(np.uint32),
        "float.tif": photos[1][:48, :64] / np.float32(255),
    }
    for name, values in tiffs.items():
        kind = {"photometric": "rgb" if values.ndim == 3 else "minisblack"}
        planes = {"planarconfig": "separate"} if name == "planes.tif" else {}
        tifffile.imwrite(tmp_path / name, values, **kind, **planes)
        files[name] = (tmp_path / name).read_bytes()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    options = [f"--model={finished_run}", f"--out={tmp_path / 'out'}", "--saturation=0"]
    assert main(["colorize", *(str(tmp_path / name) for name in files), *options]) == 2
    err = capsys.readouterr().err
    read = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert read == {"extraneous", "revision", "turned", "planes", "float"}
    for name, data in files.items():
        if Path(name).stem in read:
            coloured = np.asarray(Image.open(tmp_path / "out" / Path(name).with_suffix(".png").name))
            assert (lightness(coloured) - lightness(decode(data))).abs().max() < 1.5, name
        else:
            with pytest.raises(BrokenImage) as problem:
                decode(data)
            assert f"{name}: {problem.value}" in err


def test_samples_without_a_defined_white_are_refused_from_python(finished_run):
    for values in (np.full((8, 8), 300, np.float32), np.full((8, 8), 300, np.int32)):
        with pytest.raises(UserError, match=r"could not read the picture: .* 8 or 16 bits"):
            load_colorizer(str(finished_run))(Image.fromarray(values))


def test_keys_of_how_colours_look(finished_run, tmp_path, photos, capsys):
    Image.fromarray(photos[0][:200, :300]).save(tmp_path / "x.png")

    def chroma(**options):
        picture = Image.open(colour(finished_run, tmp_path, tmp_path / "x.png", overwrite=True, **options) / "x.png")
        lab = rgb_to_lab(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])
        return lab[:, 1:].norm(dim=1).mean().item()

    assert chroma(saturation=0) < 1 < chroma() < chroma(saturation=1.5)
    assert chroma(upsample="bilinear") != chroma()
    colour(finished_run, tmp_path, tmp_path / "x.png", gamut="clip", overwrite=True)
    assert main(["colorize", str(tmp_path / "x.png"), f"--model={finished_run}", "--out=o", "--saturation=-1"]) == 2
    assert "saturation must be within 0..10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "out"), [("a.jpg", "b.png"), ("a.jpg", "b.jpg"), ("a.tif", "b.png"), ("a.png", "b.jpg")]
)
def test_what_a_picture_says_of_itself_goes_on(finished_run, tmp_path, photos, name, out):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x010F] = 6, "harbour, 1911", "a camera"
    exif.get_ifd(0x8769)[0x829A] = 0.5  # exposure
    exif.get_ifd(0x8825)[1] = "N"
    Image.fromarray(photos[1][:40, :60]).save(tmp_path / name, exif=exif, dpi=(300, 300))
    assert main(["colorize", str(tmp_path / name), f"--model={finished_run}", f"--out={tmp_path / out}"]) == 0
    coloured = Image.open(tmp_path / out)
    found = coloured.getexif()
    assert coloured.size == (40, 60) and found.get(0x0112, 1) == 1
    assert (found[0x010E], found[0x010F]) == ("harbour, 1911", "a camera")
    if not name.endswith(".tif"):  # into which Pillow writes no groups
        assert float(found.get_ifd(0x8769)[0x829A]) == 0.5 and found.get_ifd(0x8825)[1] == "N"
    assert coloured.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_places_of_coloured_pictures(finished_run, tmp_path, photos, monkeypatch, capsys):
    """Beside what is read, or the one file that --out names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans" / "deep").mkdir(parents=True)
    for name in ("photo.jpg", "photo.png", "scans/a.jpg", "scans/deep/b.jpg"):
        Image.fromarray(photos[0][:30, :40]).save(name)
    model = f"--model={finished_run}"
    assert main(["colorize", "photo.jpg", "photo.png", "scans/", model]) == 0
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} - {"photo.png"}
    assert made == {"photo-coloured.png", "photo-coloured-1.png", "scans-coloured/a.png", "scans-coloured/deep/b.png"}
    assert main(["colorize", "photo.jpg", model]) == 0  # its own file may be replaced
    for words, said in (
        (["photo.jpg", "scans", "--out=one.png"], "one.png is a single file, but there are 3 pictures"),
        (["photo.jpg", "--out=one.webp"], "unsupported extension; use .png, .jpg or .jpeg"),
        (["photo.jpg", "--out=one.png", "--format=jpeg"], "does not match --format jpeg"),
    ):
        assert main(["colorize", *words, model]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("one*"))
