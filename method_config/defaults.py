"""Every key of the settings with its default and meaning, in the order of docs/configuration.md.

The type of a default is the type of its key: a number, True or False, text, or a list of one of
them (an empty list is a list of text). Names and nesting are those of the published code; keys
marked "ours" do not exist there. `python -m method_config` makes the tables of
docs/configuration.md from the comments: a comment belongs to the key below it or left of it.
"""

from __future__ import annotations

from yacs.config import CfgNode

_C = CfgNode()
DATASET = _C.DATASET = CfgNode()
TRAIN = _C.TRAIN = CfgNode()
TRAIN.SOFS = CfgNode()
TRAIN.LOSS = CfgNode()
TRAIN_SETUPS = _C.TRAIN_SETUPS = CfgNode()
TRAIN_SETUPS.TEST_SETUPS = CfgNode()
TEST = _C.TEST = CfgNode()
TEST.VISUALIZE = CfgNode()
TEST_SETUPS = _C.TEST_SETUPS = CfgNode()

# ## The run

# ours: folder of the run below `OUTPUT_DIR`; empty: last YAML file's folder, split and start time
_C.RUN_NAME = ""
_C.OUTPUT_DIR = "./log"  # root folder of what runs write
_C.RNG_SEED = 54  # seed of episodes, augmentation and initial weights
# processes on this machine, one per GPU; torchrun's number wins: docs/running.md#many-processes
_C.NUM_GPUS = 1
_C.DEVICE = 0  # index of the GPU that a single process uses; without CUDA it runs on the CPU
# how several processes exchange tensors on a GPU: nccl, gloo or mpi; on the CPU it is always gloo
_C.DIST_BACKEND = "nccl"

# ## Data

# VISION_V1, DS_Spectrum, DS_Spectrum_DS, mvtec, visa, each also with `_ND`, or
# opendomain_test_dataset_ND; with `_ND` small defects are seen at native resolution, without it
# every image is resized whole
DATASET.name = "VISION_V1_ND"
TRAIN.dataset_path = "./data/VISION_V1"  # root folder of the training data, see docs/data.md
# ours: further roots in the same layout; each training object is taken from all roots that have it
TRAIN.extra_dataset_paths = []
TEST.dataset_path = "./data/VISION_V1"  # root folder of the test data or the open-domain objects
DATASET.split = 0  # number of the published split, 0 to 2
DATASET.train_objects = []  # ours: objects to train on; empty: those of the split
DATASET.test_objects = []  # ours: objects to test on; empty: those of the split
# test sets, run in turn: `original` is `TEST.dataset_path` itself, another name a folder in it
DATASET.sub_datasets = ["original"]
DATASET.open_domain_test_object = ["severstal_steel"]  # open domain: objects (folders) to segment
# open domain: defect categories in the support masks (1: every value above 0 is defect), one number
# for all objects or one per object
DATASET.open_domain_object_category_num = [1]
# open domain: category to segment, from 0 (mask value minus 1); one for all or one per object
DATASET.open_domain_specific_defect_category = [0]
# ours: an image of more pixels, height x width, is refused before it is decoded, see docs/files.md
DATASET.max_pixels = 500_000_000
DATASET.vision_data_save = False  # keep the parsed annotations as JSON in `vision_data_save_path`
# take the annotations from there; they are parsed anew, with a message, where the data have changed
DATASET.vision_data_load = False
DATASET.vision_data_save_path = "./cache/index"  # folder of the parsed annotations

# ## Episodes and resolution

# side of the square network input, pixels, a multiple of `TRAIN.SOFS.vit_patch_size`; the longer
# side of an image is resized to it, the rest padded
DATASET.image_size = 518
DATASET.mask_size = 518  # side of the masks, pixels; equal to `image_size`
DATASET.crop_size = 518  # side of crops and windows, native pixels; resized to `image_size`
DATASET.crop_ratio = [0.7, 1.2]  # training: range of the random factor on the query's `crop_size`
DATASET.area_resize_ratio = 0.01  # defect share, 0 to 1, above which the image is resized whole
# ours: numbers of windows along the shorter side of an image, ascending: the first n with which a
# typical defect of the supports is 60 / n input pixels long, or the last, replaces `crop_size` and
# `area_resize_ratio`; queries are seen in the next smaller number, too, and the two scores
# averaged; [0]: none
DATASET.grids = [0]
DATASET.shot = 1  # support images per episode
DATASET.s_in_shot = 1  # views (crops) per support image
DATASET.normal_views = 0  # ours: further views per support image, around normal pixels
# ours: a support image with a defect is seen in the windows that cover it, as a query is, and in
# `s_in_shot` crops with its largest defects in their middle; training takes these windows, too, not
# augmented, of a support all the crops and `normal_views` others
DATASET.support_windows = False
# ours: further support images without defect, drawn per object and repeat, see
# docs/protocol.md#mixed-supports
DATASET.normal_shot = 0
# ours: folder below `TEST.dataset_path` with normal images for every object; empty: each object's
# own, images without annotation (VISION V1) or in `good/` (Defect Spectrum)
DATASET.normal_folder = ""
# ours: in training draw queries evenly among objects, then among classes, so that no object
# with many images rules; False: each sample is a query once per epoch
DATASET.balanced = False
# training: probability that a query crop is centred on a normal pixel (alpha of the paper)
DATASET.normal_sample_sampling_prob = 0.3
DATASET.rotate_min = -10.0  # training: lower end of the rotation, degrees
DATASET.rotate_max = 10.0  # training: upper end of the rotation, degrees

# ## Backbone

# `dinov2_vit{s,b,l,g}14(_reg)`, resnet50, wideresnet50, efficientnet_lite0 or `timm:NAME`
TRAIN.backbone = "dinov2_vitb14"
TRAIN.backbone_checkpoint = ""  # its weights (.pth, .safetensors); empty: official or embedded
TRAIN.backbone_sha256 = ""  # ours: SHA-256 that this file must have; empty: not compared
TRAIN.backbone_load_state_dict = True  # False: random weights, for tests and speed measurements
# transformer blocks (CNN: feature levels) used, counted from 0, ascending
TRAIN.SOFS.prior_layer_pointer = [5, 6, 7, 8, 9, 10]
# ours: directions per layer that tell where in its window a token lies, found in a blank image and
# taken out of all tokens; 0: none, see docs/quality.md#the-methods
TRAIN.position_directions = 0
TRAIN.SOFS.vit_patch_size = 14  # input pixels per side of a patch token; DINOv2: 14, CNNs: any
# ours: arithmetic of the networks: fp32, bf16, fp16, or auto, the fastest that the device computes
# natively; the loss stays in fp32
TRAIN.precision = "fp32"
# ours: folder in which the features of windows and supports are kept, some MB each, so that later
# repeats, shots and tests encode none of them again; empty: none
TRAIN.feature_cache_path = ""
TRAIN.compile = False  # ours: compile the backbone, which takes minutes at the start
# ours: sdpa, torch's scaled dot product attention (in half precision on a CPU without matrix units
# computed head by head, which is faster there), or xformers on CUDA (`requirements-cuda.txt`)
TRAIN.attention = "sdpa"

# ours: what encodes windows, in tests, trainings and use: torch, or on a CPU openvino or
# onnxruntime (`requirements-export.txt`), to which the first use exports the backbone; auto: the
# fastest, measured at the first use, see docs/performance.md#runtimes
TEST.runtime = "torch"
# ours: folder that `tools.export` wrote: its encoder runs, in int8 for one; empty: that of the
# first use
TEST.runtime_path = ""

# ## Head

TRAIN.SOFS.reduce_dim = 256  # channels that concatenated features are reduced to (C in the paper)
TRAIN.SOFS.transformer_embed_dim = 256  # channels of the transformer (C1 in the paper)
TRAIN.SOFS.transformer_num_stages = 2  # transformer layers
TRAIN.SOFS.transformer_nums_heads = 4  # attention heads; divides `transformer_embed_dim`
TRAIN.SOFS.target_semantic_temperature = 0.1  # softmax temperature of fusing query and support
TRAIN.SOFS.meta_cls = True  # the support prototype classifies; False: a convolutional classifier
TRAIN.SOFS.normal_sim_aug = True  # feed the abnormal prior to the query, beside the semantic prior
TRAIN.SOFS.conv_vit_down_sampling = True  # masks to tokens by defect share; False: bilinear
# ours: the head corrects the scaled score of `TEST.method` contrast; in a test the correction is
# damped, and at most 2 (log-odds)
TRAIN.SOFS.prior_residual = False

# ## Training

# method that is trained, and tested during the training
TRAIN.method = "SOFS"
TRAIN_SETUPS.epochs = 50  # passes over the training queries
TRAIN_SETUPS.batch_size = 4  # episodes per process and step
TRAIN_SETUPS.num_workers = 8  # loader workers per process, in training and test; 0: none
TRAIN_SETUPS.learning_rate = 1e-5  # AdamW learning rate of the transformer
TRAIN_SETUPS.lr_multiple = 2.0  # factor on it for the other parameters of the head
TRAIN_SETUPS.weight_decay = 0.01  # AdamW weight decay
TRAIN_SETUPS.poly_training = True  # polynomial decay of the learning rate, power 0.9 per iteration
TRAIN.SOFS.smooth_r = 1e5  # eta of the Dice term of queries without defect
TRAIN.LOSS.dice_weight = 1.0  # weight of the mixed normal Dice loss
TRAIN.LOSS.ce_weight = 0.01  # weight of the cross entropy
# ours: where logits meet the mask: token (as published), or pixel, better for thin defects
TRAIN.LOSS.resolution = "token"
# ours: augmented crops per sample and role that are encoded once, before the first epoch; 0: new
# crops, encoded each time, see [below](#the-feature-bank)
TRAIN.feature_bank = 0
TRAIN.load_checkpoint = False  # start the head from `TRAIN.load_model_path`
TRAIN.load_model_path = ""  # file of those weights
# ours: auto: go on from the run's own `checkpoints/state.pth`, if there is one; or the path of such
# a file, see docs/running.md#resume
TRAIN.resume = ""
TRAIN.save_model = True  # keep head and training state after each epoch
TRAIN_SETUPS.TEST_SETUPS.test_state = True  # test during training and at its end
TRAIN_SETUPS.TEST_SETUPS.epoch_test = 50  # epochs between those tests
TRAIN_SETUPS.TEST_SETUPS.train_miou = 50  # epochs between reports of the training IoU per class
# hold images of the training objects out, test on them whenever it tests, and keep the head that is
# best on them as `best.safetensors`, see docs/protocol.md#validation
TRAIN_SETUPS.TEST_SETUPS.val_state = False
# ours: share of a class's images that are held out, at least one where it has three
TRAIN_SETUPS.TEST_SETUPS.val_share = 0.1

# ## Test

# SOFS, which needs a checkpoint, or without training prior or contrast, see docs/quality.md
TEST.method = "SOFS"
TEST.load_checkpoint = False  # load the head in `TEST.load_model_path`; False: test the prior alone
TEST.load_model_path = ""  # a head of ours (`head.safetensors`) or the published `SOFS_model.pth`
# ours: `ours`, or `published` to compare figures, in training and test: support crops may miss
# their defect and then count as zero, the query's own mask chooses its scale, windows join as
# published, see docs/protocol.md
TEST.protocol = "ours"
TEST.baseline = True  # ours: measure the prior beside the head
# ours: probability above which a pixel is defect; auto: chosen on the supports, see
# docs/protocol.md#the-threshold
TEST.threshold = 0.5
# ours: share of its side that a window shares with the next, 0 to 0.9; overlaps are blended
TEST.window_overlap = 0.0
# ours: background tokens kept of the supports where there are more, mostly those most like the
# defect; 0: all; the foreground is kept whole; see docs/performance.md for what it costs
TEST.memory_tokens = 8192
# ours: of these, background tokens kept for each support image, as more of one image mean more
# chance likeness, and those of further images more of what is normal; 0: no bound
TEST.support_tokens = 0
# ours: where normal images are taught beside a defect, the share of images without defect that
# shall stay empty: an image has none if no score exceeds a bar, which those images and the surface
# of the supports tell, see docs/protocol.md#mixed-supports; 0: there is no bar
TEST.normal_gate = 0.9
# ours: masks follow the pixels of the image: colours and graininess tell the pixels around a defect
# apart, pixels go along with neighbours that look alike, and a border lies where the score falls
# fastest, that of wide regions where colours change, see docs/quality.md#the-pixels; leave it off
# where far more is marked than is seen; not for `prior`
TEST.refine = False
# ours: where a defect is taught by several images, each is segmented by the others, and refined
# masks are corrected by what this tells, see docs/quality.md#the-pixel-probe; without TEST.refine
# it does nothing
TEST.pixel_probe = False
# ours: normal images per object, at most, in which every class of the object is looked for, see
# docs/protocol.md#normal-images-as-queries; 0: none
TEST.normal_queries = 0
DATASET.few_shot_repeated_multiple = 1  # runs of the test, with `RNG_SEED`, `RNG_SEED` + 1, ...
DATASET.test_sample_repeated_multiple = 1  # tests of each query per run, with new supports
# write figures of a test; the overlays of open-domain objects are always written
TEST.VISUALIZE.save_figure = True
TEST.VISUALIZE.sample_prob = 0.1  # share of the queries that get one, 0 to 1
TEST_SETUPS.batch_size = 4  # queries that a loader worker sends at once; no influence on results
TEST_SETUPS.ND_batch_size = 4  # windows per backbone batch; lower it when memory runs out

# Keys of files and folders, in which `~`, `~user` and `$NAME` are written out, end like this.
PATH_ENDINGS = ("_DIR", "_path", "_paths", "_checkpoint", ".resume")
# A word that a number's key takes beside numbers.
WORDS = {"TEST.threshold": "auto"}


def get_defaults() -> CfgNode:
    """A new, unfrozen copy of the whole tree."""
    return _C.clone()
