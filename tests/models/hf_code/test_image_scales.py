"""Two scales against the same written out image by image, and patch by patch."""

import pytest
import torch

from models.hf_code.image_scales import at_two_scales, check_scales, grid_of

PATCH, WIDTH = 14, 5


def encode(drop):
    """A tower that sees a patch and its place in the image, and leaves some first patches out."""
    weight = torch.randn(3 * PATCH * PATCH, WIDTH, generator=torch.Generator().manual_seed(1))

    def run(pixels):
        rows = []
        for image in pixels:
            grid = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4)
            patches = grid.reshape(-1, 3 * PATCH * PATCH)
            places = torch.arange(len(patches)).unsqueeze(1) / 7
            rows.append(torch.sin(patches @ weight + places)[drop:])
        return torch.stack(rows)

    return run


def half(image):
    """Each pixel of the half is bicubic (a = -0.75) in the middle of sixteen, without smoothing."""
    weights = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375])
    side = image.shape[-1]
    places = (2 * torch.arange(side // 2).unsqueeze(1) + torch.arange(-1, 3)).clamp(0, side - 1)
    rows = (image[:, places] * weights.view(1, 1, 4, 1)).sum(2)
    return (rows[:, :, places] * weights).sum(3)


# A side of three patches; without the first of 15 x 15, the others are read as 14 x 16.
@pytest.mark.parametrize(
    ("side", "drop", "grid"), [(3 * PATCH, 0, (3, 3)), (15 * PATCH, 1, (14, 16))]
)
def test_quarters_are_averaged_before_the_whole(side, drop, grid):
    pixels = torch.randn(2, 3, 2 * side, 2 * side, generator=torch.Generator().manual_seed(2))
    run = encode(drop)
    found = at_two_scales(run, pixels)
    rows, columns = grid
    for image, features in zip(pixels, found, strict=True):
        whole = run(half(image).unsqueeze(0))[0]
        laid = torch.zeros(2 * rows, 2 * columns, WIDTH)
        for i in range(2):
            for j in range(2):
                quarter = image[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
                own = run(quarter.unsqueeze(0))[0].reshape(rows, columns, WIDTH)
                laid[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = own
        averaged = torch.stack(
            [
                laid[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(4, WIDTH).mean(0)
                for i in range(rows)
                for j in range(columns)
            ]
        )
        assert (features - torch.cat([averaged, whole], dim=1)).abs().max() <= 1e-4


def test_other_scales_and_features_that_make_no_grid_are_refused():
    check_scales([1.0, 0.5])
    with pytest.raises(ValueError, match=r"image_scales: \[1.0, 0.25\] are not supported"):
        check_scales([1.0, 0.25])
    assert grid_of(728) == (26, 28)
    with pytest.raises(ValueError, match="577 features of an image make no rectangle"):
        grid_of(577)
