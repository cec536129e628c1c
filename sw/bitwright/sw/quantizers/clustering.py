"""Clustered weights (Deep Compression; Han, Mao and Dally, arXiv 1510.00149, section 3).

The weights of a layer that are not zero are clustered by k-means, once, into ``2**bits`` clusters. A weight is then an
index of its cluster, and training moves the centroids: the gradient of a centroid is the sum over its members. Weights
that are zero stay so and belong to no cluster; with them the values of a layer are one more.

Hardware holds integers: the centroids in use are rounded to integers times the layer's scale, which is what training
sees, and the gradient passes the rounding unchanged.

Clusters are found when a network is quantized, so quantize one that has been trained.
"""

import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import NEARLY_ZERO, StraightThrough, largest_magnitude
from bitwright.sw.quantizers.filters import CodebookWeight
from bitwright.sw.quantizers.registry import Method


@torch.no_grad()
def cluster(values: Tensor, clusters: int, *, iterations: int = 1000) -> tuple[Tensor, Tensor]:
    """Cluster numbers by k-means, until no number changes its cluster.

    Centroids begin at equal distances from the least to the greatest number (the paper's linear initialization), and
    each number belongs to the nearest, halfway to the lower. A cluster that loses all members keeps its centroid. With
    no more different numbers than clusters each gets its own.

    Parameters
    ----------
    values
        Shape (n,), n at least 1, all finite.
    clusters
        At least 1.
    iterations
        At most so many; some tens are usual.

    Returns
    -------
    centroids
        float64, ascending, shape (clusters,).
    members
        Cluster of each number, int64, shape (n,).
    """
    different, inverse = values.double().unique(return_inverse=True)
    if len(different) <= clusters:
        return torch.cat([different, different[-1:].expand(clusters - len(different))]), inverse
    ordered, order = values.double().sort()
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centroids = torch.linspace(float(ordered[0]), float(ordered[-1]), clusters, dtype=torch.float64).to(values.device)
    ends = order[:0]
    for _ in range(iterations):
        # One-dimensional clusters are intervals: cluster i is ordered[ends[i] : ends[i + 1]].
        found = torch.searchsorted(ordered, (centroids[:-1] + centroids[1:]) / 2, right=True)
        found = torch.cat([found.new_zeros(1), found, found.new_full((1,), len(ordered))])
        if torch.equal(found, ends):
            break
        ends = found
        counts = ends.diff()
        means = sums[ends].diff() / counts.clamp(min=1)
        centroids = torch.where(counts > 0, means, centroids)
    members = torch.empty_like(order)
    members[order] = torch.repeat_interleave(torch.arange(clusters, device=order.device), ends.diff())
    return centroids, members


class ClusteredWeight(CodebookWeight):
    """Weights that are centroids of clusters, found by :meth:`fit`; the real weights have no influence from then on.

    Parameters
    ----------
    bits
        Of an index: 1 to 8, for 2 to 256 clusters.
    planes
        Bits of the integers that centroids are rounded to, 2 to 8.

    Attributes
    ----------
    centroids
        Parameter, shape (2**bits,).
    indices
        Cluster of each weight, int16, of the weight's shape; ``2**bits`` for a weight that is zero.
    """

    indices: Tensor

    def __init__(self, bits: int, *, planes: int = 8) -> None:
        super().__init__(bits, planes=planes)
        self.centroids = nn.Parameter(torch.zeros(1 << bits))
        self.register_buffer("indices", torch.empty(0, dtype=torch.int16))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Find the clusters of a weight."""
        if not values.isfinite().all():
            raise BitwrightError("A weight to cluster is NaN or infinite; give a trained network.")
        kept = values.abs() > NEARLY_ZERO
        self.indices = torch.full_like(values, 1 << self.bits, dtype=torch.int16)
        centroids = torch.zeros(1 << self.bits)
        if kept.any():
            centroids, members = cluster(values[kept], 1 << self.bits)
            self.indices[kept] = members.to(torch.int16)
        self.centroids.data = centroids.to(values)

    def forward(self, weight: Tensor) -> Tensor:
        """Give each weight its centroid, rounded; backward, each centroid gets the sum of its members' gradients."""
        integers, scale = self._rounded()
        centroids = StraightThrough.apply(self.centroids, integers * scale, None)
        return self._members(weight, centroids)

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Give the integer of each weight's centroid, and the layer's scale."""
        integers, scale = self._rounded()
        return self._members(weight, integers), scale

    def codebook(self) -> Tensor:
        """Give the integers that occur, after a check of the centroids."""
        if not self.centroids.isfinite().all():
            raise BitwrightError(
                "A centroid is NaN or infinite, expected finite numbers; train with a lower learning rate."
            )
        integers, _ = self._rounded()
        return self._members(self.indices, integers).long().unique()

    def _rounded(self) -> tuple[Tensor, Tensor]:
        """Give centroids as integers, and their scale."""
        centroids = self.centroids.detach()
        largest = largest_magnitude(centroids)
        scale = torch.where(largest <= NEARLY_ZERO, 1, largest) / self.greatest
        return (centroids / scale).round(), scale

    def _members(self, weight: Tensor, values: Tensor) -> Tensor:
        """Give each weight the value of its cluster."""
        if weight.shape != self.indices.shape:
            raise BitwrightError(
                f"The clusters are those of a weight of shape {tuple(self.indices.shape)}, found one of "
                f"{tuple(weight.shape)}; fit the quantizer to the weight first."
            )
        return torch.cat([values, values.new_zeros(1)])[self.indices.long()]


METHOD = Method("clustered", ClusteredWeight)
