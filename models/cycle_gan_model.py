"""The unpaired MR to CT model: generators, discriminators and shape extractor, their losses and their step.

Generator `netG_A` maps the source domain A to the target domain B and `netG_B` maps back; `netD_A` judges images of B
(real_B against fake_B) and `netD_B` images of A. A is MR and B is CT, or the reverse with `--direction BtoA`. Images
are (N, C, H, W): CT has as many channels as a slab has slices, MR as many for each contrast (`data.loading.channels`).

The shape constraint acts on the synthetic CT, whichever of the two fakes that is: the frozen extractor `netE` draws its
body, which must agree with the mask of the MR that it was made from and look like such masks to `netD_S`.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import InputError
from data.files import hash_files
from data.loading.batches import LoadedBatches, collate
from data.loading.channels import with_channels
from data.loading.settings import DataSettings
from data.loading.slices import SliceSource
from data.loading.unaligned_dataset import UnalignedDataset, UnalignedSampler, open_unaligned
from data.settings.declaration import Nature, option, redeclare
from models.base_model import BaseModel, MethodSettings, Place, process_seed, require_gradients, unchanged_statistics
from models.image_pool import ImagePool
from models.inference_settings import InferenceSettings
from models.initialisation import InitialisationSettings, initialise
from models.losses import (
    DISCRIMINATED,
    CycleGANLosses,
    correlation_loss,
    gan_loss,
    local_correlation_loss,
    mutual_information_loss,
    shape_loss,
    shape_with_edges,
)
from models.networks import Architecture, DiscriminatorSettings, GeneratorSettings, build_discriminator, build_generator
from models.run_description import describe_unaligned
from models.shape_constraint import ShapeConstraint
from models.shape_extractor import ShapeExtractor, extractor_file, label_channels, open_extractor
from models.warm_start import WarmStart

log = logging.getLogger(__name__)

# Random slices of each domain from which that of the pictures is taken.
_CANDIDATES = 8


@dataclass(frozen=True, kw_only=True)
class CycleGANSettings(
    GeneratorSettings, DiscriminatorSettings, InitialisationSettings, CycleGANLosses, ShapeConstraint, WarmStart,
    MethodSettings,
):  # fmt: skip
    """CycleGAN."""

    netD: str = redeclare(DiscriminatorSettings, "netD", needs=DISCRIMINATED)
    ndf: int = redeclare(DiscriminatorSettings, "ndf", needs=DISCRIMINATED)
    n_layers_D: int = redeclare(DiscriminatorSettings, "n_layers_D", needs=DISCRIMINATED)
    direction: str = option(
        "AtoB", nature=Nature.FIXED, choices=("AtoB", "BtoA"), aliases=("--which_direction",), help="AtoB: MR to CT"
    )
    serial_batches: bool = option(False, nature=Nature.RESULT, help="take slices in order, not at random")

    @property
    def uses_batch_norm(self) -> bool:
        """Whether batch norm is used."""
        return self.norm == "batch"

    @property
    def uses_pools(self) -> bool:
        """Whether there are discriminators that are shown past synthetic images."""
        return self.pool_size > 0 and (self.lambda_gan > 0 or self.lambda_shape_gan > 0)

    def __post_init__(self) -> None:
        """Refuse options that nothing would use.

        Raises:
            InputError: it names the option and what it needs.
        """
        WarmStart.__post_init__(self)
        MethodSettings.__post_init__(self)
        if self.n_layers_D != DiscriminatorSettings.n_layers_D and self.netD != "n_layers":
            raise InputError(f"--n_layers_D {self.n_layers_D} needs --netD n_layers")


class CycleGANModel(BaseModel):
    """Unpaired MR and CT: a CycleGAN with the correlation-coefficient loss and the shape constraint."""

    settings_type = CycleGANSettings
    settings: CycleGANSettings
    fixed_facts = ("contrasts",)
    memory_options = "--crop_size (--preprocess body_crop) or --ngf"

    def __init__(
        self,
        settings: CycleGANSettings,
        device: torch.device,
        extractor: ShapeExtractor | None = None,
        mask_labels: int = 1,
        rank: int = 0,
        processes: int = 1,
        slab: int = 1,
        contrasts: int = 1,
    ) -> None:
        """Build and initialise the networks; the same seed gives the same weights.

        Args:
            settings: what to build.
            device: where to train.
            extractor: needed with a shape weight: frozen, and for CT under this run's intensity map.
            mask_labels: labels that the masks of the MR tell apart; classes of the extractor beyond them do not count.
            rank: this process's number among those that train together, each on its own part of every batch; their
                pools differ.
            processes: how many they are; with more than one, `torch.distributed` has been started, and gradients are
                averaged.
            slab: slices of an image.
            contrasts: those of an MR.
        """
        if settings.uses_shape and extractor is None:
            raise ValueError("a shape weight is above 0: expected a shape extractor")
        super().__init__(settings, device, processes)
        s = settings
        generator = torch.Generator().manual_seed(s.seed)

        def prepared(net: nn.Module) -> nn.Module:
            initialise(net, s.init_type, s.init_gain, generator)
            if s.sync_batch_norm:
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            return net.to(device)

        def discriminator(channels: int) -> nn.Module:
            return prepared(build_discriminator(s.netD, channels, s.ndf, s.n_layers_D, s.norm))

        self.slab = slab
        mr, ct = contrasts * slab, slab
        self.channels = {"A": mr, "B": ct} if s.direction == "AtoB" else {"A": ct, "B": mr}
        a, b = self.channels.values()
        self.netG_A, self.netG_B = (prepared(build_generator(Architecture.of(s, *nc))) for nc in ((a, b), (b, a)))
        self.networks = {"G_A": self.netG_A, "G_B": self.netG_B}
        self.optimisers = {"G": self._adam(self.netG_A, self.netG_B)}
        if s.lambda_gan > 0:
            self.netD_A, self.netD_B = map(discriminator, (b, a))
            self.networks |= {"D_A": self.netD_A, "D_B": self.netD_B}
            self.optimisers["D"] = self._adam(self.netD_A, self.netD_B)
        if s.uses_shape:
            assert extractor is not None, "it is opened where it is used"
            self.netE = extractor.to(device)
            self.shape_classes = min(extractor.settings.n_classes, mask_labels)
        if s.lambda_shape_gan > 0:
            self.netD_S = discriminator(2 * slab * self.shape_classes)
            self.networks["D_S"] = self.netD_S
            self.optimisers["D_S"] = self._adam(self.netD_S)
        self.pools = {
            name: ImagePool(s.pool_size, torch.Generator().manual_seed(process_seed(s.seed, rank, k)))
            for k, name in enumerate("ABS")
            if f"D_{name}" in self.networks
        }
        self._wrap_networks(averaged=("G_A", "G_B"), frozen=[self.netE] if s.uses_shape else [])
        self._warm = False
        self._open_sample: Callable[[], dict] | None = None  # known where the model is built for a data set

    @classmethod
    def check(cls, settings: CycleGANSettings, data: DataSettings) -> None:
        """Refuse simulated pairs of slices whose pixel size is not known."""
        if settings.simulates and data.preprocess == "resize_and_crop":
            raise InputError(
                "simulated pairs (--warm_start, --lambda_simulated) need the pixel size, which --preprocess "
                "resize_and_crop changes; use body_crop"
            )

    @classmethod
    def open_data(
        cls, settings: CycleGANSettings, data: DataSettings, leave_out: Collection[str] = ()
    ) -> UnalignedDataset:
        """Open the unpaired slices; see `open_unaligned`."""
        return open_unaligned(
            data.dataroot, data.mr_window, data.ct_map, data.augmentation, settings.uses_shape, settings.seed,
            simulate_mr=settings.simulates, one_size=data.batch_size > 1 or settings.uses_pools,
            leave_out=leave_out, slab=data.slab,
        )  # fmt: skip

    @classmethod
    def from_data(cls, settings: CycleGANSettings, data: DataSettings, dataset: UnalignedDataset, place: Place) -> Self:
        """Build the networks, with the shape extractor where a shape weight asks for it."""
        log.info("%d slices of A, %d of B", len(dataset.a), len(dataset.b))
        extractor = None
        if settings.uses_shape:
            path = settings.extractor_path(data.dataroot)
            extractor = open_extractor(path, data.dataroot, place.device, data.ct_map, dataset.spacing_mm, dataset.view)
        model = cls(
            settings, place.device, extractor, dataset.a.mask_labels, place.rank, place.processes, dataset.slab,
            len(dataset.contrasts),
        )  # fmt: skip
        if extractor:
            parts = (
                "the outline of the body" if model.shape_classes == 1 else f"{model.shape_classes} parts of the body"
            )
            log.info("shape constraint: %s, as all masks show it", parts)
        multiple = Architecture.of(settings, *model.channels.values()).multiple
        model._open_sample = partial(_fixed_sample, dataset, settings.seed, multiple)
        return model

    @classmethod
    def batches(
        cls, settings: CycleGANSettings, data: DataSettings, dataset: UnalignedDataset, place: Place
    ) -> LoadedBatches:
        """Return the batches of unpaired slices."""
        sampler = UnalignedSampler(
            dataset, settings.seed, data.max_dataset_size, data.batch_size, place.rank, place.processes,
            settings.serial_batches,
        )  # fmt: skip
        return LoadedBatches(dataset, sampler, data.num_threads, pin_memory=place.device.type == "cuda")

    def describe(self, data: DataSettings, dataset: UnalignedDataset) -> InferenceSettings:
        """Return what the use of `G_A` must know."""
        architecture = Architecture.of(self.settings, self.channels["A"], self.channels["B"])
        return describe_unaligned(data, architecture, self.settings.direction, dataset)

    def facts(self, data: DataSettings, dataset: UnalignedDataset) -> dict[str, str]:
        """Return the numbers of slices, the contrasts, and which shape extractor there is."""
        facts = {"slices of A and B": f"{len(dataset.a)}, {len(dataset.b)}", "contrasts": ", ".join(dataset.contrasts)}
        if self.settings.uses_shape:
            facts["shape extractor"] = hash_files([extractor_file(self.settings.extractor_path(data.dataroot))])
        return facts

    def start_epoch(self, epoch: int) -> None:
        """Begin an epoch, counted from 1: the first ones are of the warm start."""
        self._warm = epoch <= self.settings.warm_epochs

    def fixed_visuals(self) -> dict[str, Tensor]:
        """Return a whole slice of each domain, drawn once, and what the generators make of them and back."""
        if self._fixed_sample is None:
            return {}
        real_A, real_B = self._source_and_target(self._fixed_sample)
        fake_B, fake_A = self._run_in_use("G_A", real_A), self._run_in_use("G_B", real_B)
        rec_A, rec_B = self._run_in_use("G_B", fake_B), self._run_in_use("G_A", fake_A)
        return {
            "real_A": real_A, "fake_B": fake_B, "rec_A": rec_A, "real_B": real_B, "fake_A": fake_A, "rec_B": rec_B
        }  # fmt: skip

    @cached_property
    def _fixed_sample(self) -> dict | None:
        return self._open_sample() if self._open_sample else None

    def warm_step(self, batch: dict) -> dict[str, Tensor]:
        """Update the generators on simulated pairs alone.

        Args:
            batch: `simulated_A` and `simulated_B`, an MR and a CT on one grid, (N, S, H, W) in [-1, 1].

        Returns:
            As `step`, without discriminators.

        Raises:
            NonFiniteLossError: as `step`.
        """
        images, losses = self._simulated(batch, weight=1.0)
        total = self._update("G", losses, batch)
        self.scaler.update()
        self._average()
        self.visuals = {name: image.detach() for name, image in images.items()}
        return {name: loss.detach() for name, loss in ({"G": total} | losses).items()}

    def step(self, batch: dict) -> dict[str, Tensor]:
        """Update the generators, then the discriminators, on one batch.

        Args:
            batch: `A` and `B`, (N, C, H, W) in [-1, 1]; with a shape weight also `mask_A`, labels (N, S, H, W); with
                `lambda_simulated` also what `warm_step` takes.

        Returns:
            Scalars without history: the generators' total `G` and every weighted loss that it is the sum of, and those
            of the discriminators that there are: D_A, D_B, D_S.

        Raises:
            NonFiniteLossError: before any weight is changed by the loss that is not finite.
        """
        if self._warm:
            return self.warm_step(batch)
        discriminators = [net for name, net in self.networks.items() if name.startswith("D_")]
        require_gradients(discriminators, False)
        images = self._translate(batch)
        losses = self._generator_losses(images)
        if self.settings.uses_shape:
            losses |= self._shape_losses(images, batch["mask_A"].to(self.device, non_blocking=True))
        if self.settings.lambda_simulated:
            simulated, losses_simulated = self._simulated(batch, self.settings.lambda_simulated)
            images, losses = images | simulated, losses | losses_simulated
        total = self._update("G", losses, batch)
        self._average()
        self.visuals = {name: image.detach() for name, image in images.items()}
        require_gradients(discriminators, True)
        losses_D: dict[str, Tensor] = {}
        if self.settings.lambda_gan > 0:
            fake = {name: self.pools[name].query(images[f"fake_{name}"]) for name in "AB"}
            losses_D = {
                "D_A": self._discriminator_loss(self.netD_A, images["real_B"], fake["B"]),
                "D_B": self._discriminator_loss(self.netD_B, images["real_A"], fake["A"]),
            }
            self._update("D", losses_D, batch)
        if self.settings.lambda_shape_gan > 0:
            real_S, fake_S = (shape_with_edges(self.visuals[name]) for name in ("mask", "shape"))
            loss_S = {"D_S": self._discriminator_loss(self.netD_S, real_S, self.pools["S"].query(fake_S))}
            self._update("D_S", loss_S, batch)
            losses_D |= loss_S
        self.scaler.update()
        return {name: loss.detach() for name, loss in ({"G": total} | losses | losses_D).items()}

    def _translate(self, batch: dict) -> dict[str, Tensor]:
        """Return the real images and all that the generators make of them, with their history of gradients."""
        real_A, real_B = self._source_and_target(batch)
        images = {"real_A": real_A, "real_B": real_B}
        if self.settings.lambda_identity > 0:
            # Of several contrasts: each stands for itself where a CT is put in, and the first one must give all.
            as_A, as_B = with_channels(real_B, self.channels["A"]), with_channels(real_A, self.channels["B"])
            images["fake_B"], images["idt_A"] = self._run_together(self.netG_A, real_A, as_A)
            images["fake_A"], images["idt_B"] = self._run_together(self.netG_B, real_B, as_B)
        else:
            images |= {"fake_B": self._run(self.netG_A, real_A), "fake_A": self._run(self.netG_B, real_B)}
        with unchanged_statistics(self.netG_A, self.netG_B):
            images["rec_A"] = self._run(self.netG_B, images["fake_B"])
            images["rec_B"] = self._run(self.netG_A, images["fake_A"])
        return images

    def _source_and_target(self, batch: dict, prefix: str = "") -> tuple[Tensor, Tensor]:
        """Return a batch's images of the source and of the target domain, on the device."""
        domains = "AB" if self.settings.direction == "AtoB" else "BA"
        source, target = (batch[prefix + domain].to(self.device, non_blocking=True) for domain in domains)
        return source, target

    def _generator_losses(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms of L_G but for the shape's; keys with A belong to the cycle A -> B -> A."""
        s = self.settings
        real_A, fake_B, rec_A = (images[name] for name in ("real_A", "fake_B", "rec_A"))
        real_B, fake_A, rec_B = (images[name] for name in ("real_B", "fake_A", "rec_B"))
        losses = {}
        if s.lambda_gan > 0:
            # lambda_gan (gan(D_A(G_A(A)), real) + gan(D_B(G_B(B)), real))
            losses["gan_A"] = s.lambda_gan * gan_loss(self._run(self.netD_A, fake_B), True, s.gan_mode)
            losses["gan_B"] = s.lambda_gan * gan_loss(self._run(self.netD_B, fake_A), True, s.gan_mode)
        # lambda_A |G_B(G_A(A)) - A|_1 + lambda_B |G_A(G_B(B)) - B|_1
        losses["cycle_A"] = s.lambda_A * F.l1_loss(rec_A, real_A)
        losses["cycle_B"] = s.lambda_B * F.l1_loss(rec_B, real_B)
        if s.lambda_identity > 0:
            # lambda_identity (lambda_B |G_A(B) - B|_1 + lambda_A |G_B(A) - A|_1)
            losses["idt_A"] = s.lambda_identity * s.lambda_B * F.l1_loss(images["idt_A"], real_B)
            losses["idt_B"] = s.lambda_identity * s.lambda_A * F.l1_loss(images["idt_B"], real_A)
        # lambda_correlation (1 - r(fake, real)^2), Ge et al., SPIE Medical Imaging 2019
        if s.lambda_correlation_A > 0:
            losses["correlation_A"] = s.lambda_correlation_A * self._correlation(fake_B, real_A)
        if s.lambda_correlation_B > 0:
            losses["correlation_B"] = s.lambda_correlation_B * self._correlation(fake_A, real_B)
        # lambda_mi (1 - I(fake, real) / log(bins)), the idea of Ge et al., ISBI 2019
        if s.lambda_mi_A > 0:
            losses["mi_A"] = s.lambda_mi_A * mutual_information_loss(fake_B, real_A, s.mi_bins, s.mi_window)
        if s.lambda_mi_B > 0:
            losses["mi_B"] = s.lambda_mi_B * mutual_information_loss(fake_A, real_B, s.mi_bins, s.mi_window)
        return losses

    def _correlation(self, fake: Tensor, real: Tensor) -> Tensor:
        window = self.settings.lcc_window
        return local_correlation_loss(fake, real, window) if window else correlation_loss(fake, real)

    def _simulated(self, batch: dict, weight: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return images and weighted losses of the simulated pairs: |G_A(a) - b|_1 and |G_B(b) - a|_1."""
        a, b = self._source_and_target(batch, "simulated_")
        images = {"simulated_A": a, "simulated_B": b}
        images |= {"from_simulated_A": self._run(self.netG_A, a), "from_simulated_B": self._run(self.netG_B, b)}
        losses = {
            "simulated_A": weight * F.l1_loss(images["from_simulated_A"], b),
            "simulated_B": weight * F.l1_loss(images["from_simulated_B"], a),
        }
        return images, losses

    def _shape_losses(self, images: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted shape terms of L_G, and add the MR's `mask` and the synthetic CT's `shape` to `images`.

        `labels`, (N, S, H, W), are those of the MR that the synthetic CT was made from. The extractor sees each slice
        by itself. `mask` and `shape` are (N, S K, H, W), a slice's K classes together, so that `netD_S` judges slabs.
        """
        s = self.settings
        fake = images["fake_B" if s.direction == "AtoB" else "fake_A"]
        logits = self._run(self.netE, fake.flatten(0, 1).unsqueeze(1))[:, : self.shape_classes]
        mask = label_channels(labels.flatten(0, 1).unsqueeze(1), self.shape_classes)
        for name, slices in (("mask", mask), ("shape", torch.sigmoid(logits))):
            images[name] = slices.unflatten(0, (-1, self.slab)).flatten(1, 2)
        losses = {}
        # lambda_shape |sigmoid(E(fake CT)) - mask|_1 + lambda_shape_gan gan(D_S(shape), real), Ge et al., ISBI 2019
        if s.lambda_shape > 0:
            losses["shape"] = s.lambda_shape * shape_loss(logits, mask, s.shape_loss)
        if s.lambda_shape_gan > 0:
            scores = self._run(self.netD_S, shape_with_edges(images["shape"]))
            losses["gan_S"] = s.lambda_shape_gan * gan_loss(scores, True, s.gan_mode)
        return losses

    def _discriminator_loss(self, net: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Return (gan(D(real), real) + gan(D(fake), fake)) / 2."""
        mode = self.settings.gan_mode
        score_real, score_fake = self._run_together(net, real, fake)
        return (gan_loss(score_real, True, mode) + gan_loss(score_fake, False, mode)) / 2


def _fixed_sample(dataset: UnalignedDataset, seed: int, multiple: int) -> dict:
    """Return a batch of one sample of whole slices; of a few slices it has those that show most.

    `multiple`: of which the sides of the generators' images have to be multiples.
    """
    rng = np.random.default_rng([seed, 0])

    def fullest(source: SliceSource) -> Tensor:
        indices = map(int, rng.integers(len(source), size=_CANDIDATES))
        index = max(indices, key=lambda index: float(source.read(index, with_mask=False).image.mean()))
        return dataset.whole(source, index, multiple)

    return collate([{"A": fullest(dataset.a), "B": fullest(dataset.b)}])
