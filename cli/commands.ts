/** Every command's name, arguments, options and examples. Loading this file loads no GPU, no image library, no model. */
import type { Command } from "./command.ts";
import { amount, box, count, mix, peers, point, seed, share, side } from "./values.ts";

const overrides = ["[key=value...]", "settings of the config to change, such as optim.lr=1e-4"] as const;

export const commands: readonly Command[] = [
  {
    name: "quickstart",
    summary: "make scenes, derive mixed weak labels, train WISH, evaluate, write pictures and a report",
    options: [
      { flags: "--steps <n>", help: "training steps (default: what fits the adapter in 15 minutes)", parse: count },
      { flags: "--out <dir>", help: "the run's folder", default: "runs/quickstart" },
    ],
    notes: "Runs on the embedded default and needs no data. The report is report.html in the run's folder.",
    examples: ["wgpu-wish quickstart", "wgpu-wish quickstart --steps 20"],
    load: () => import("./quickstart.ts"),
  },
  {
    name: "scenes",
    summary: "make a COCO-layout data set of procedural scenes with exact masks",
    options: [
      { flags: "--out <dir>", help: "folder for images/ and annotations/instances.json", required: true },
      { flags: "--images <n>", help: "number of images", parse: count, required: true },
      { flags: "--size <px>", help: "width and height of an image", parse: side, default: 128 },
      { flags: "--seed <n>", help: "the same seed gives the same files", parse: seed, default: 0 },
    ],
    notes: "Objects of six classes, textured, some behind others, on noisy grounds among clutter.",
    examples: ["wgpu-wish scenes --out data/scenes --images 200 --seed 7"],
    load: () => import("./scenes.ts"),
  },
  {
    name: "doctor",
    summary: "show the GPU adapter, check that it computes right, measure its speed, give advice",
    options: [{ flags: "--fast", help: "leave out the speed probe" }],
    examples: ["wgpu-wish doctor", "wgpu-wish doctor --adapter software --json"],
    load: () => import("./doctor.ts"),
  },
  {
    name: "dataset",
    summary: "turn VOC, SBD, labelme, YOLO, COCO or a CSV of tags into the JSON that other commands read",
    args: [["<source...>", "where the labels lie; several are joined, each image being labelled in one of them"]],
    options: [
      { flags: "--out <file>", help: "JSON to write", required: true },
      { flags: "--weak", help: "write weak labels as they were drawn: boxes, points or tags, one kind an image" },
      { flags: "--set <name>", help: "VOC: train, val, trainval, train_aug or Main/NAME; SBD, YOLO: train, val, test" },
      { flags: "--sbd <dir>", help: "SBD's dataset folder, for VOC's train_aug" },
      { flags: "--images <dir>", help: "folder that file names are relative to (default: the format's own)" },
      { flags: "--classes <file>", help: "the classes: a name on each line, or a JSON made before, whose ids stay" },
    ],
    notes:
      "VOC: a root such as VOCdevkit/VOC2012; without --set all images that are segmented. train_aug is VOC's train and SBD's train and val without VOC's val: 10,582 images. Lists under ImageSets/Main give boxes, from Annotations; difficult objects become crowd.\n\n" +
      "labelme: a folder with a JSON for each labelled image; others are left out. Polygons, circles and masks are masks, rectangles boxes, points points, image flags tags. YOLO: a data.yaml; lines of five numbers are boxes. CSV: the columns file_name and tags (a;b;c), with --images.\n\n" +
      "Without --weak comes a COCO instances JSON, whose masks `weaken` can turn into weak labels. With --classes training and evaluation data get the same classes.\n\n" +
      "Of the images only the headers are read, for their sizes (of COCO's with --images): that a file is cut off, `show` and `train` find.",
    examples: [
      "wgpu-wish dataset VOCdevkit/VOC2012 --set train_aug --sbd benchmark_RELEASE/dataset --out train_aug.json",
      "wgpu-wish dataset photos --weak --out weak.json",
      "wgpu-wish dataset photos-val --classes weak.json --out val.json",
      "wgpu-wish dataset photos tags.csv --images photos --weak --out weak.json",
    ],
    load: () => import("./dataset.ts"),
  },
  {
    name: "weaken",
    summary: "derive weak labels (tags, points, boxes) from full masks",
    options: [
      { flags: "--ann <file>", help: "COCO instances JSON with masks", required: true },
      { flags: "--out <file>", help: "weak labels JSON to write", required: true },
      { flags: "--tags <share>", help: "share of the images that get tags", parse: share },
      { flags: "--points <share>", help: "share of the images that get points", parse: share },
      { flags: "--boxes <share>", help: "share of the images that get boxes", parse: share },
      { flags: "--budget <cost>", help: "spend this much: a tag costs 1, points 6, boxes 12 an image", parse: amount },
      {
        flags: "--mix <shares>",
        help: "shares of the budget: tags:F,points:F,boxes:F, such as tags:1/2,boxes:1/2",
        parse: mix,
      },
      { flags: "--seed <n>", help: "the same seed gives the same file", parse: seed, default: 0 },
      { flags: "--point <where>", help: "where a point is put", choices: ["center", "uniform"], default: "center" },
    ],
    notes:
      "Either shares of the images (--tags, --points, --boxes; absent ones are 0) or --budget with --mix. A share is a number from 0 to 1 or a fraction such as 1/3.",
    examples: [
      "wgpu-wish weaken --ann data/scenes/annotations/instances.json --out weak.json --tags 0.4 --points 0.3 --boxes 0.3",
      "wgpu-wish weaken --ann instances.json --out weak.json --budget 1200 --mix tags:0.2,points:0.4,boxes:0.4",
    ],
    load: () => import("./weaken.ts"),
  },
  {
    name: "show",
    summary: "write PNG previews of labels, augmentation, CAMs, SAM proxies or predictions",
    args: [["<what>", "what to draw", ["gt", "weak", "augmented", "cam", "proxies", "predictions"]]],
    options: [
      {
        flags: "--run <dir>",
        help: "a run's folder: the labels it learns from (weak), the data it is judged by (gt), or what it answers",
      },
      { flags: "--ann <file>", help: "instances or weak labels JSON (with --images)" },
      { flags: "--images <dir>", help: "folder of the images (with --ann)" },
      { flags: "--out <dir>", help: "folder for the PNGs", required: true },
      { flags: "--limit <n>", help: "at most this many images (default: 64)", parse: count },
    ],
    examples: [
      "wgpu-wish show gt --ann data/scenes/annotations/instances.json --images data/scenes/images --out previews",
      "wgpu-wish show augmented --ann data/scenes/weak.json --images data/scenes/images --out previews",
      "wgpu-wish show cam --run runs/quickstart --out previews",
    ],
    load: () => import("./show.ts"),
  },
  {
    name: "convert",
    summary: "convert .pt, .pth, .pkl, .safetensors or .onnx weights to safetensors under their original names",
    args: [
      ["<in>", "file of weights, index of its shards, or folder with one; nothing in it is executed"],
      ["<out>", "safetensors file to write"],
    ],
    options: [
      {
        flags: "--any",
        help: "also write a model that is not known here, its tensors unchecked under the names that they have",
      },
    ],
    notes:
      "The model is told by its keys: SAM, MobileSAM, Mask2Former, ResNet, Swin, MobileNetV2, and what train and sam-train write; of a checkpoint of " +
      "theirs the model is kept. Where tensors are missing, left over or of another shape, or the model is none of these, nothing is written. " +
      "SAM may be its image encoder alone. Weights that torch.onnx.export renamed get their modules' names back where the graph tells these.",
    examples: [
      "wgpu-wish convert mobile_sam.pt mobile_sam.safetensors",
      "wgpu-wish convert facebook/sam-vit-base/model.safetensors sam.safetensors",
    ],
    load: () => import("./convert.ts"),
  },
  {
    name: "sam",
    summary: "segment one image from points and boxes with SAM or MobileSAM",
    options: [
      {
        flags: "--checkpoint <file>",
        help: "original or converted SAM or MobileSAM weights, as convert reads them; with --engine onnx the decoder's .onnx",
        required: true,
      },
      { flags: "--image <file>", help: "image to segment", required: true },
      {
        flags: "--point <x,y[,0|1]>",
        help: "a click; all of them form one prompt; 0 is background",
        parse: point,
        repeat: true,
      },
      { flags: "--box <x0,y0,x1,y1>", help: "a box; each is a prompt of its own", parse: box, repeat: true },
      { flags: "--single", help: "one mask for each prompt instead of three candidates" },
      {
        flags: "--engine <name>",
        help: "what computes: this package's engine, or ONNX Runtime (npm install onnxruntime-node)",
        choices: ["webgpu", "onnx"],
        default: "webgpu",
      },
      {
        flags: "--encoder <file>",
        help: "with --engine onnx: the image encoder's .onnx, or a whole SAM's weights, whose encoder this package's engine runs",
      },
      { flags: "--half", help: "store the weights in half precision (f16): half the memory, sums in f32" },
      { flags: "--out <dir>", help: "folder for overlay and mask PNGs", required: true },
      { flags: "--dump <file>", help: "write the raw tensors as safetensors" },
    ],
    examples: [
      "wgpu-wish sam --checkpoint mobile_sam.pt --image dog.jpg --point 320,240 --out out",
      "wgpu-wish sam --checkpoint sam_vit_b_01ec64.pth --image dog.jpg --box 40,60,400,380 --single --out out --json",
      "wgpu-wish sam --checkpoint sam_vit_h_4b8939.pth --half --image dog.jpg --point 320,240 --out out --verbose",
      "wgpu-wish sam --engine onnx --checkpoint sam_vit_b_decoder.onnx --encoder sam_vit_b_01ec64.pth --image dog.jpg --point 320,240 --out out",
    ],
    notes:
      "--engine onnx runs SAM's decoder as segment-anything's export_onnx_model.py writes it, or optimum's prompt_encoder_mask_decoder.onnx, which takes points alone; an encoder's .onnx takes normalised pixels (1, 3, S, S). " +
      "Its --dump is without the prompts' embeddings, which stay inside the export. The most memory that tensors took on the GPU stands in --json and with --verbose.",
    load: () => import("./sam.ts"),
  },
  {
    name: "sam-train",
    summary: "train or fine-tune the SAM architecture on instance masks",
    args: [["<config>", "YAML file"], overrides],
    options: [
      { flags: "--resume", help: "continue the run from its last checkpoint, bit for bit" },
      {
        flags: "--eval",
        help: "train nothing: measure the run's last checkpoint, or weights=FILE, from points and from boxes",
      },
    ],
    examples: [
      "wgpu-wish sam-train configs/sam-mini.yaml steps=2000",
      "wgpu-wish sam-train configs/sam-mini.yaml --eval weights=assets/sam-mini.safetensors",
    ],
    load: () => import("./sam-train.ts"),
  },
  {
    name: "train",
    summary: "train WISH on weak labels, or Mask2Former on masks",
    args: [["<config>", "YAML file"], overrides],
    options: [{ flags: "--resume", help: "continue the run from its last checkpoint, bit for bit" }],
    examples: [
      "wgpu-wish train configs/coco-mini.yaml",
      "wgpu-wish train configs/coco-mini.yaml run=runs/slow optim.lr=1e-4",
      "wgpu-wish train configs/coco-mini.yaml --resume",
    ],
    load: () => import("./train.ts"),
  },
  {
    name: "eval",
    summary: "COCO metrics of a run, or of a results file",
    options: [
      { flags: "--run <dir>", help: "a run's folder: its model is evaluated" },
      { flags: "--data <file>", help: "instances JSON to evaluate the run on (default: the config's)" },
      {
        flags: "--images <dir>",
        help: "folder of its images (default: val2017/ of instances_val2017.json, or images/, beside the file or its folder)",
      },
      { flags: "--gt <file>", help: "instances JSON (with --dt)" },
      { flags: "--dt <file>", help: "COCO results JSON (with --gt)" },
      {
        flags: "--iou <kind>",
        help: "overlap of masks (default), or of boxes (default where the data has no masks)",
        choices: ["segm", "bbox"],
      },
      { flags: "--details <file>", help: "write precision-recall curves and the confusion matrix as JSON" },
      { flags: "--protocol <name>", help: "voc adds VOC's metrics", choices: ["coco", "voc"], default: "coco" },
    ],
    examples: [
      "wgpu-wish eval --run runs/quickstart",
      "wgpu-wish eval --run runs/a --data coco/annotations/instances_val2017.json",
      "wgpu-wish eval --gt instances.json --dt results.json --json",
    ],
    load: () => import("./eval.ts"),
  },
  {
    name: "predict",
    summary: "segment images with a trained model",
    args: [["<image...>", "images, folders of them, or patterns"]],
    options: [
      { flags: "--run <dir>", help: "a run's folder" },
      {
        flags: "--checkpoint <file>",
        help: "instead of --run: a checkpoint, or Mask2Former weights of detectron2 or transformers",
      },
      { flags: "--out <dir>", help: "folder for overlays, masks, results.json and images.json", required: true },
      {
        flags: "--short <px>",
        help: "size images to this on the short side (default: the run's, or 800)",
        parse: side,
      },
      { flags: "--long <px>", help: "limit of the long side (default: the run's, or 1333)", parse: side },
      { flags: "--score <f>", help: "leave out instances below this score", parse: share },
      {
        flags: "--inference <variant>",
        help: "masks of Mask2Former's decoder, or of SAM's from the predicted prompt",
        choices: ["mask2former", "sam"],
        default: "mask2former",
      },
      { flags: "--dump <file>", help: "write the raw tensors as safetensors" },
    ],
    notes:
      "results.json holds COCO results, whose image ids 1, 2, … are in the order given; images.json says which file each of them is. Of several images those that cannot be read are skipped with a warning, and the exit code is 1.",
    examples: [
      "wgpu-wish predict --run runs/quickstart photo.jpg --out out",
      'wgpu-wish predict --run runs/a photos "more/**/*.jpg" --out out --score 0.5',
      "wgpu-wish predict --checkpoint model_final_3c8ec9.pkl photo.jpg --out out",
    ],
    load: () => import("./predict.ts"),
  },
  {
    name: "study",
    summary: "train and compare kinds of labels, mixtures at equal budget, and what WISH is made of",
    args: [["<config>", "YAML file"], overrides],
    options: [
      { flags: "--out <dir>", help: "folder of the runs, study.md, study.json and report.html", required: true },
      { flags: "--seeds <n>", help: "repetitions of each training, for mean and spread", parse: count, default: 1 },
      { flags: "--resume", help: "go on with an interrupted study; what is done stays" },
    ],
    notes:
      "The file holds `train:` with settings of `wgpu-wish train`, `annotations:` (the masks that weak labels are derived from), and, where wanted, `budget:`, `point:` and `arms:` (a list of names).",
    examples: [
      "wgpu-wish study configs/scenes-study.yaml --out runs/study --seeds 3",
      'wgpu-wish study configs/scenes-study.yaml "arms=[tags, boxes]" train.steps=200 --out runs/quick',
    ],
    load: () => import("./study.ts"),
  },
  {
    name: "gradcheck",
    summary: "check every differentiable function and its gradient against a float64 reference",
    args: [["[op...]", "functions to check (default: all)"]],
    examples: ["wgpu-wish gradcheck", "wgpu-wish gradcheck conv2d layerNorm --json"],
    load: () => import("./gradcheck.ts"),
  },
  {
    name: "bench",
    summary: "measure kernels and whole steps",
    args: [["[name...]", "what to measure (default: all but what takes minutes without a GPU)"]],
    options: [
      {
        flags: "--compare <engines>",
        help: "measure tfjs, jax-js, onnxruntime beside it and print ratios (in a checkout)",
        parse: peers,
      },
    ],
    notes:
      "A name stands for all that begin with it. Figures are medians of repeats on the adapter that --adapter names. " +
      "Measured only when named, since they take from half a minute to half an hour on a software adapter, and with the most memory that tensors took: sam-vit-b, sam-vit-l, sam-vit-h and mobile-sam (one image), r50-step, r50-step-checkpoint and r50-step-mixed (a training step at 1024 px), matmul-4096.",
    examples: [
      "wgpu-wish bench",
      "wgpu-wish bench matmul --json",
      "wgpu-wish bench sam-vit-b",
      "npm ci --prefix bench --ignore-scripts && npx wgpu-wish bench --compare tfjs,jax-js,onnxruntime",
    ],
    load: () => import("./bench.ts"),
  },
  {
    name: "tune",
    summary: "measure the engine's kernels on this adapter and use the fastest from now on",
    notes:
      "For what a training step of configs/scenes.yaml and other usual work asks for. Results stay the same bit for bit: only kernels that agree in every bit replace each other. WGPU_WISH_TUNE=0 leaves the choices unused.",
    examples: ["wgpu-wish tune", "wgpu-wish tune --adapter swiftshader --json"],
    load: () => import("./tune.ts"),
  },
];
