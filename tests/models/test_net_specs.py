"""Descriptions of nets: the options of a family, and what files of earlier versions hold."""

import pytest

from crosschannel import UserError
from crosschannel.config.load import build_stored
from crosschannel.models import NetSpec, build_net, family, spec_of

# As versions before the options wrote them, whatever the family.
SAME = {"norm": True, "fc": 0, "geometry": "padded", "variant": "crosschannel", "affine": False, "fc7": 0}
STORED = {
    "alexnet": {**SAME, "fc": 32, "geometry": "probe", "variant": "rotnet", "fc7": 8},
    "vgg16": {**SAME, "norm": False},
    "colornet": {**SAME, "affine": True},
    "timm:resnet18": SAME,
}


@pytest.mark.parametrize("name", STORED)
def test_descriptions_are_stored_as_before(name):
    stored = {"name": name, "in_channels": 3, **STORED[name]}
    spec = build_stored(NetSpec, stored, "the file")
    assert list(spec.to_dict().items()) == list(stored.items())
    assert spec.options == family(name).options(**family(name).supported_options(**STORED[name]))
    assert spec_of(build_net(spec, 64)) == spec


def test_a_family_has_its_own_options_only():
    assert NetSpec("colornet", affine=True).options.fc == 0
    for name, options in (("colornet", {"fc": 3}), ("vgg16", {"variant": "rotnet"}), ("mynets:net", {"norm": False})):
        with pytest.raises(TypeError):
            NetSpec(name, **options)


def test_a_changed_description_keeps_the_rest():
    spec = NetSpec("alexnet", 3, fc=32, variant="rotnet")
    assert spec.replace(fc=0) == NetSpec("alexnet", 3, variant="rotnet")
    assert spec.replace(1, norm=False) == NetSpec("alexnet", 1, fc=32, variant="rotnet", norm=False)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (None, "the file is damaged or from another version: expected a mapping of keys"),
        ([], "the file is damaged or from another version: expected a mapping of keys"),
        ({"name": 3}, "the file is damaged or from another version: name must be a string, got 3"),
        ({"name": "alexnet", "in_channels": 0}, "in_channels must be"),
        (
            {"name": "alexnet", "fc": "x"},
            "the file is damaged or from another version: fc must be a whole number, got 'x'",
        ),
        ({"name": "alexnet", "fc": -1}, "fc must be"),
        ({"name": "alexnet", "width": 3}, "unknown key 'width'"),
        ({"name": "nothing"}, "unknown net 'nothing'"),
    ],
)
def test_a_damaged_description_is_refused(stored, words):
    with pytest.raises(UserError, match=words):
        build_stored(NetSpec, stored, "the file")
