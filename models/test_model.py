"""A generator in inference: no gradients, batches that fit into memory; also loaded from a file."""

import logging
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.errors import InputError, is_out_of_memory
from data.loading.single_dataset import SingleDataset, SlabMean, SlabSpread, Slices, completed
from data.loading.threads import one_thread
from data.progress import shown_progress
from models.inference_settings import MIRRORINGS, InferenceSettings
from models.memory import asked_and_free, free_memory
from models.networks import build_generator
from models.precision import DTYPES, choose_precision
from models.state_dicts import load_network_weights
from models.winograd import speed_up

log = logging.getLogger(__name__)

# Slices in one pass: a GPU gains little from more.
LARGEST_BATCH = {"mps": 16, "cuda": 64}
# Share of the free memory that a batch may need; the rest is for other programs, and for what the estimate misses.
MEMORY_SHARE = 0.5


def gathered(translated: Iterable[np.ndarray], slices: Slices) -> np.ndarray:
    """Return the outputs for source slices, one after the other, as one array, float32 (N, H, W)."""
    array = np.empty((len(slices), *slices.shape[-2:]), np.float32)
    for index, one in enumerate(translated):
        array[index] = one
    return array


class Translator:
    """A generator as it is used: the slices of a volume in, those of its translation out.

    The network is left as it is, one in training too: its mode and its weights are its owner's.
    """

    def __init__(
        self, netG: nn.Module, slab: int, device: torch.device, precision: str = "fp32", mirrored: str = ""
    ) -> None:
        """Take a network on `device`; `precision` of `precision.PRECISIONS`, the others as in `InferenceSettings`."""
        self.device, self.precision = device, choose_precision(precision, device)
        self.netG, self.slab = netG, slab
        self.dtype = DTYPES[self.precision]
        self._mirrorings = MIRRORINGS[mirrored]
        # A CPU takes slices one by one, each in a thread of its own; other devices take them in batches.
        self._threads = torch.get_num_threads() if device.type == "cpu" else None
        self._fitting: int | None = None  # slices at a time for which there was memory

    def translate(self, slices: Slices, batch_size: int | None = None, bar: str = "") -> np.ndarray:
        """Return what `stream` yields, float32 (N, H, W)."""
        return gathered(self.stream(slices, batch_size, bar=bar), slices)

    def stream(
        self, slices: Slices, batch_size: int | None = None, spread: SlabSpread | None = None, bar: str = ""
    ) -> Iterator[np.ndarray]:
        """Yield the target slices, float32 (H, W), of source slices, in order; all in [-1, 1].

        A model of slabs sees every slice with its neighbours; a slice is the mean of what all its slabs give. Source
        slices are asked for a few before they are used.

        Args:
            slices: source slices, (N, H, W) or of several contrasts (N, C, H, W).
            batch_size: slices at a time; None chooses by the free memory. Halved, from then on, where memory ends.
            spread: gets every output of which the result is the mean; whoever gets a slice takes its variance there.
            bar: title of the progress that is shown; '' for none.

        Raises:
            InputError: no memory for a single slice, or the network's output is not finite.
        """
        count = len(slices)
        mean = SlabMean(count, self.slab)
        views = self._translate_views(slices, batch_size)
        if bar:
            views = shown_progress(views, count, bar, "slice", leave=False)
        for centre, outputs in enumerate(views):
            mean.add(centre, _mean(outputs))
            if spread is not None:
                for output in outputs:
                    spread.add(centre, output)
            for index in completed(centre, self.slab, count):
                yield self._finite(mean.take(index))

    def _finite(self, translated: np.ndarray) -> np.ndarray:
        """Return a slice; refuse one that is not finite."""
        if np.isfinite(translated).all():
            return translated
        way = (
            "use other weights (--epoch), or train the model again"
            if self.dtype == torch.float32
            else "try --precision fp32"
        )
        raise InputError(f"the network's output is not finite (NaN or infinite) in {self.precision}; {way}")

    def translate_slabs(self, slices: Slices, batch_size: int | None = None) -> Iterator[np.ndarray]:
        """Yield what the network gives, float32 (K, H, W), of every slice's slab, in order; see `translate`."""
        for outputs in self._translate_views(slices, batch_size):
            yield _mean(outputs)

    def _translate_views(self, slices: Slices, batch_size: int | None) -> Iterator[np.ndarray]:
        """Yield what the network gives of each mirroring, float32 (V, K, H, W), of every slice's slab, in order."""
        if batch_size is None and self._fitting is None and len(slices):
            self._fitting = self._choose_batch_size(SingleDataset(slices, self.slab)[0].numpy())
        size = min(filter(None, (batch_size, self._fitting)), default=1)
        start = 0
        while start < len(slices):
            try:
                for outputs in self._outputs(slices, start, size):
                    for output in outputs:
                        start += 1
                        yield output
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = self._fitting = self._smaller(size, error)

    def _outputs(self, slices: Slices, start: int, size: int) -> Iterator[np.ndarray]:
        """Yield target slabs, float32 (`size` or fewer, V, S, H, W), of all source slices from `start` on."""
        slabs = SingleDataset(slices, self.slab, start)
        if self._threads is None:
            for batch in DataLoader(slabs, size, pin_memory=self.device.type == "cuda"):
                yield self._run(batch.to(self.device, non_blocking=True))
            return
        # As fast as all threads on one slice, or faster; and no voxel depends on the number of threads.
        threads = ThreadPoolExecutor(size)
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            for index in range(len(slabs)):
                waiting.append(threads.submit(self._run_alone, slabs[index]))
                if len(waiting) > size:  # a slab more than there are threads, so that none waits
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _run_alone(self, slab: Tensor) -> np.ndarray:
        """Return the target slab, float32 (1, V, S, H, W), of a slab (C S, H, W), on one core."""
        with one_thread():
            return self._run(slab[None])

    @torch.inference_mode()
    def _run(self, batch: Tensor) -> np.ndarray:
        """Return what the network gives of each mirroring, float32 (N, V, K, H, W), of a batch (N, C S, H, W)."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            views = [self.netG(batch.flip(axes)).flip(axes).float() for axes in self._mirrorings]
        return torch.stack(views, dim=1).cpu().numpy()

    def _choose_batch_size(self, one: np.ndarray) -> int:
        """Return how many slabs like `one`, (C S, H, W), to send through the network at a time."""
        try:
            fitting = int(MEMORY_SHARE * free_memory(self.device) / self._bytes_of_a_slice(one))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fitting = 1
        return max(1, min(self._threads or LARGEST_BATCH[self.device.type], fitting))

    def _smaller(self, size: int, error: Exception) -> int:
        """Return half a batch size for which there was no memory."""
        if size == 1:
            raise InputError(
                f"{self.device}: out of memory with one slice at a time{asked_and_free(error, self.device)}; free "
                "some, or choose another --device"
            ) from error
        log.info("%s: out of memory with %d slices at a time; continuing with %d", self.device, size, size // 2)
        traceback.clear_frames(error.__traceback__)  # the failed pass's tensors would stay as long as the error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return size // 2

    def _bytes_of_a_slice(self, one: np.ndarray) -> int:
        """Return the memory that one slice would take if no layer's output were freed, which bounds what it takes."""
        sizes = []
        leaves = [module for module in self.netG.modules() if not list(module.children())]
        hooks = [leaf.register_forward_hook(lambda *args: sizes.append(args[-1].nbytes)) for leaf in leaves]
        try:
            self._run(torch.from_numpy(one)[None].to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        return max(1, sum(sizes) // len(self._mirrorings))


def _mean(outputs: np.ndarray) -> np.ndarray:
    """Return the mean over mirrorings (V, ...) of what a network gives."""
    return outputs[0] if len(outputs) == 1 else outputs.mean(axis=0)


class TestModel(Translator):
    """The trained generator from the source to the target domain (`G_A`)."""

    __test__ = False  # not a test case, whatever its published name makes pytest think

    def __init__(
        self, settings: InferenceSettings, weights: Path, device: torch.device, precision: str = "fp32"
    ) -> None:
        """Build the generator and load its weights from the file `weights`; `precision` of `precision.PRECISIONS`."""
        s = settings
        netG = build_generator(s.generator)
        load_network_weights(netG, weights)
        super().__init__(netG, s.slab, device, precision, s.mirrored)
        self.netG.to(device).eval().requires_grad_(False)
        if device.type == "cpu" and self.dtype == torch.bfloat16:
            speed_up(self.netG)
