"""Is the guest's image made of what was downloaded alone? The tests' own network has nobody to ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest import image as images
from tests.guest.image import CACHE, ImageError, image

DOWNLOADED = sorted(CACHE.glob("linux-image-*.deb"))


def test_that_without_a_kernel_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CACHE", tmp_path)
    with pytest.raises(ImageError, match="make guest-bootstrap"):
        image()


@pytest.mark.skipif(not DOWNLOADED, reason="needs make guest-bootstrap")
def test_that_a_kernel_is_unpacked_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CACHE", tmp_path)
    (tmp_path / DOWNLOADED[-1].name).symlink_to(DOWNLOADED[-1])
    made = image()
    assert made.kernel.read_bytes()[:4] == b"\x7fELF"
    assert (made.modules / "modules.dep").exists()
    first = made.first.read_bytes()
    assert b"virtiofs.ko" in first and b"overlay.ko" in first
    assert image() == made
