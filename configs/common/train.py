"""What a run is beside model, data, optimizer and schedule."""

COCO, LVIS = 118_000, 100_000  # training images, as detectron2 counts them


def iterations(epochs: int, images: int = COCO, batch: int = 64) -> int:
    """Optimizer steps of so many epochs."""
    return epochs * images // batch


train = dict(
    max_iter=iterations(100),
    seed=0,
    amp=True,  # autocast to bfloat16 where the device computes in it, to float16 on older GPUs
    clip_grad_norm=None,
    init_weights="none",  # of the encoder: a word of docs/weights.md, a path, or "none": random
    tuning="full",  # of the encoder; "last:<n>": its last n blocks; "frozen": nothing of it
    ema=0.0,  # decay, per iteration, of a moving average of the weights to evaluate; 0: none
    may_skip=0,  # iterations with NaN or infinity that are left out before training stops
    parallel="ddp",  # over several devices; "fsdp": weights and optimizer state are spread too
    compile=False,  # each block of the encoder, by torch.compile
    threads=0,  # CPU threads of one process; 0: all
    checkpoint_period=5000,  # iterations
    checkpoint_minutes=20,  # or so many minutes, whichever is over first
    log_period=20,  # iterations
)
