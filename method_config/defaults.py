"""Every setting of the program with its default, its unit and its meaning.

The type of a default is the type of its key: an int, float, bool, str, or a list of one of them (an empty list holds
str). Names and nesting are the published ones; "ours" marks a key that the published tree does not have, "no effect"
one that is accepted because published YAML files carry it.
"""

from __future__ import annotations

from yacs.config import CfgNode

_C = CfgNode()

_C.NUM_GPUS = 1  # processes on this machine, one per GPU
_C.RNG_SEED = 54  # seed of episodes, augmentation and initial weights
_C.DEVICE = 0  # index of the GPU when one is used by a single process
_C.DIST_BACKEND = "nccl"  # torch.distributed backend when NUM_GPUS > 1
_C.OUTPUT_DIR = "./log"  # root folder of what runs write
_C.RUN_NAME = ""  # ours: folder below OUTPUT_DIR; empty: named after the YAML's folder, the split and the start time

_C.DATASET = CfgNode()
# Data set and its layout. Suffix _ND: small defects are cropped and tiled at native resolution; without: every image
# is resized whole.
_C.DATASET.name = "VISION_V1_ND"
_C.DATASET.split = 0  # number of the published split, 0 to 2
_C.DATASET.train_objects = []  # ours: objects to train on, in place of the split's; empty: the split's
_C.DATASET.test_objects = []  # ours: objects to test on, in place of the split's; empty: the split's
_C.DATASET.sub_datasets = ["original"]  # names of test sets, run in turn
_C.DATASET.image_size = (
    518  # pixels, side of the square network input; longer side resized to it, the rest padded
)
_C.DATASET.mask_size = 518  # pixels, side of the masks beside that input; equal to image_size
_C.DATASET.unified_mask_size = (
    4000  # no effect (test masks were padded to this side to form batches)
)
_C.DATASET.transform_length_width_ratio = True  # no effect
_C.DATASET.rotate_min = -10.0  # degrees, lower end of the training rotation
_C.DATASET.rotate_max = 10.0  # degrees, upper end
_C.DATASET.area_resize_ratio = (
    0.01  # share of the image, 0 to 1: larger defects are seen in the image resized whole
)
_C.DATASET.crop_size = (
    518  # native pixels, side of crops and windows; shown to the network at image_size
)
_C.DATASET.crop_ratio = [0.7, 1.2]  # range of the random factor on crop_size in training
_C.DATASET.shot = 1  # support images per episode
_C.DATASET.s_in_shot = 1  # views (crops) per support image
_C.DATASET.normal_views = 0  # ours: further views per support image, around normal pixels
_C.DATASET.normal_sample_sampling_prob = (
    0.3  # probability that a training query crop is centred on a normal pixel
)
_C.DATASET.normal_shot = (
    0  # ours: further support images, without defect, drawn per object and repeat
)
# ours: folder below TEST.dataset_path with normal images for every object; empty: each object's own, where it has some
_C.DATASET.normal_folder = ""
_C.DATASET.test_sample_repeated_multiple = (
    1  # times each query is tested, with new supports each time
)
_C.DATASET.few_shot_repeated_multiple = (
    1  # times the whole test runs, with seeds RNG_SEED, RNG_SEED + 1, ...
)
_C.DATASET.max_pixels = (
    500_000_000  # ours: height x width above which an image is refused before it is decoded
)
_C.DATASET.vision_data_save = False  # write the parsed annotations below vision_data_save_path
_C.DATASET.vision_data_load = False  # read them from there
_C.DATASET.vision_data_save_path = "./cache/index"  # folder of the parsed annotations
_C.DATASET.open_domain_test_object = [
    "severstal_steel"
]  # objects (folders) to segment in the open domain data
_C.DATASET.open_domain_object_category_num = [
    1
]  # defect categories; one number for all objects, or one per object
_C.DATASET.open_domain_specific_defect_category = [
    0
]  # category to segment; one number for all, or one per object

_C.TRAIN = CfgNode()
_C.TRAIN.enable = True  # no effect (train.py trains)
_C.TRAIN.method = "SOFS"  # method
_C.TRAIN.dataset_path = "./data/VISION_V1"  # root folder of the training data
_C.TRAIN.extra_dataset_paths = []  # ours: further roots in the same layout whose training objects join the training
# dinov2_vit{s,b,l,g}14, each also with _reg; resnet50, wideresnet50, efficientnet_lite0; timm:NAME
_C.TRAIN.backbone = "dinov2_vitb14"
_C.TRAIN.backbone_load_state_dict = (
    True  # load pretrained weights into the backbone; False: random weights
)
_C.TRAIN.backbone_checkpoint = (
    ""  # file of the backbone's weights; empty: download the official file
)
_C.TRAIN.backbone_sha256 = ""  # ours: expected SHA-256 of that file; empty: not compared
_C.TRAIN.load_checkpoint = False  # start the head from the weights in load_model_path
_C.TRAIN.load_model_path = ""  # file of those weights
# ours: file of a training state to go on from; auto: that of the run itself, if there is one; empty: a new training
_C.TRAIN.resume = ""
_C.TRAIN.save_model = True  # keep the trained weights
# ours: arithmetic of the networks, fp32, bf16, fp16, or auto: the fastest that the device computes natively
_C.TRAIN.precision = "fp32"
_C.TRAIN.compile = (
    False  # ours: compile the backbone with torch.compile, which takes minutes at the start
)
# ours: augmented crops per sample and role (query, support view) that are encoded once, before the first epoch; the
# epochs then train the head on the kept features alone; 0: new crops, encoded each time
_C.TRAIN.feature_bank = 0
_C.TRAIN.attention = "sdpa"  # ours: attention kernels of the backbone, sdpa or xformers

_C.TRAIN.SOFS = CfgNode()
_C.TRAIN.SOFS.prior_layer_pointer = [
    5,
    6,
    7,
    8,
    9,
    10,
]  # backbone blocks (CNN: stages) used, counted from 0, ascending
_C.TRAIN.SOFS.vit_patch_size = 14  # pixels of the input per token side; 14 for DINOv2
_C.TRAIN.SOFS.reduce_dim = (
    256  # channels after the reduction of the concatenated features (C in the paper)
)
_C.TRAIN.SOFS.transformer_embed_dim = 256  # channels of the transformer (C1 in the paper)
_C.TRAIN.SOFS.transformer_num_stages = 2  # transformer layers
_C.TRAIN.SOFS.transformer_nums_heads = 4  # attention heads; divides transformer_embed_dim
_C.TRAIN.SOFS.target_semantic_temperature = (
    0.1  # softmax temperature of the fusion of query and support
)
_C.TRAIN.SOFS.meta_cls = (
    True  # support prototype as classifier; False: convolutional classifier of two channels
)
_C.TRAIN.SOFS.normal_sim_aug = True  # feed the abnormal prior, too, to the query's mixing
_C.TRAIN.SOFS.conv_vit_down_sampling = (
    True  # masks to tokens by foreground share; False: bilinear interpolation
)
_C.TRAIN.SOFS.smooth_r = 1e5  # eta of the Dice term of queries without defect
# ours: support views without a defect pixel: skip (crops always hold their defect, empty views are left out of the
# means), or reference (as published: a crop may miss it, and counts as zero)
_C.TRAIN.SOFS.empty_supports = "skip"
_C.TRAIN.SOFS.prior_residual = (
    False  # ours: start from the training-free prior, which the head corrects
)

_C.TRAIN.LOSS = CfgNode()
_C.TRAIN.LOSS.dice_weight = 1.0  # weight of the mixed normal Dice loss
_C.TRAIN.LOSS.ce_weight = 0.01  # weight of the cross entropy
_C.TRAIN.LOSS.resolution = (
    "token"  # ours: where answer and mask are compared, token (published) or pixel
)

_C.TRAIN_SETUPS = CfgNode()
_C.TRAIN_SETUPS.batch_size = 4  # episodes per process and step
_C.TRAIN_SETUPS.num_workers = 8  # loader workers per process; 0: load in the process itself
_C.TRAIN_SETUPS.learning_rate = 1e-5  # AdamW learning rate of the transformer
_C.TRAIN_SETUPS.lr_multiple = 2.0  # factor on it for the other parameters of the head
_C.TRAIN_SETUPS.epochs = 50  # passes over the training queries; 0: none
_C.TRAIN_SETUPS.weight_decay = 0.01  # AdamW weight decay
_C.TRAIN_SETUPS.optimizer_momentum = 0.9  # no effect with AdamW
_C.TRAIN_SETUPS.poly_training = (
    True  # polynomial decay of the learning rate, power 0.9 per iteration
)

_C.TRAIN_SETUPS.TEST_SETUPS = CfgNode()
_C.TRAIN_SETUPS.TEST_SETUPS.test_state = True  # test during training
_C.TRAIN_SETUPS.TEST_SETUPS.epoch_test = 50  # epochs between those tests
_C.TRAIN_SETUPS.TEST_SETUPS.train_miou = 50  # epochs between reports of the training mIoU per class
# hold out images of the training objects, test on them whenever it tests, and keep the head that is best on them
_C.TRAIN_SETUPS.TEST_SETUPS.val_state = False
_C.TRAIN_SETUPS.TEST_SETUPS.val_share = (
    0.1  # ours: share of a class's images that are held out for it
)

_C.TEST = CfgNode()
_C.TEST.enable = False  # no effect (test.py tests)
_C.TEST.method = "SOFS"  # method
_C.TEST.dataset_path = "./data/VISION_V1"  # root folder of the test data
_C.TEST.load_checkpoint = False  # load the weights in load_model_path; False: untrained head
_C.TEST.load_model_path = ""  # file of the weights to test
_C.TEST.semantic_threshold = 0.6  # no effect on SOFS (threshold of another method)
_C.TEST.threshold = (
    0.5  # ours: probability from which a pixel counts as defect; auto: chosen on the supports
)
_C.TEST.merge = "probability"  # ours: how windows join: probability (blended), or reference (published stitching)
_C.TEST.window_overlap = (
    0.0  # ours: share of its side that a window has in common with the next, 0 to 0.9
)
_C.TEST.memory_tokens = 8192  # ours: background tokens kept of the supports; 0: all
_C.TEST.mirrored_supports = (
    False  # ours: compare with the supports' mirror images, too; four passes per support view
)
_C.TEST.baseline = True  # ours: report the training-free prior beside the head
# ours: whose area share chooses between resized image and windows: support (mean of the supports' masks), or query (the
# query's own true mask, as in the published protocol)
_C.TEST.query_scale = "support"

_C.TEST.VISUALIZE = CfgNode()
_C.TEST.VISUALIZE.save_figure = True  # write figures of the test
_C.TEST.VISUALIZE.sample_prob = 0.1  # share of the queries with a figure, 0 to 1

_C.TEST_SETUPS = CfgNode()
_C.TEST_SETUPS.batch_size = 4  # queries per batch
_C.TEST_SETUPS.ND_batch_size = 4  # windows per pass through the backbone


PATHS = (  # keys of files and folders anywhere: `~`, `~user` and `$NAME` are written out
    "OUTPUT_DIR",
    "DATASET.vision_data_save_path",
    "TRAIN.dataset_path",
    "TRAIN.extra_dataset_paths",
    "TRAIN.backbone_checkpoint",
    "TRAIN.load_model_path",
    "TRAIN.resume",
    "TEST.dataset_path",
    "TEST.load_model_path",
)
WORDS = {"TEST.threshold": ("auto",)}  # what a number's key takes beside numbers


def get_defaults() -> CfgNode:
    """A new, unfrozen copy of the whole tree."""
    return _C.clone()
