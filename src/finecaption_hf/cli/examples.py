"""Examples in the help of each command: what for, and what to type. A test parses them with the command's parser."""

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("What is in a box of a picture?", "finecaption caption photo.jpg --box 40,60,200,180"),
        ("The same in a browser.", "finecaption demo"),
        ("Help for a command.", "finecaption caption -h"),
    ),
    "caption": (
        ("The whole picture.", "finecaption caption photo.jpg"),
        ("Two regions, two questions, and a picture of the answers.",
         "finecaption caption photo.jpg --box 40,60,200,180 --mask dog.png --task region --attribute color "
         "--out answers.png"),
        ("The thing under a click, in your own words, as JSON.",
         'finecaption caption photo.jpg --point 120,90 --question "Is it new?" --json'),
        ("Whatever there is, with another model.",
         "finecaption caption photo.jpg --everything --model Qwen/Qwen2.5-VL-3B-Instruct"),
    ),
    "describe": (
        ("Regions of an annotation tool, as JSON Lines.",
         "finecaption describe annotations.json --images photos --output captions.jsonl"),
        ("All attributes, put into a copy of the annotations.",
         "finecaption describe annotations.json --attribute all --output described.json --output-format same"),
        ("A dataset of the Hub.", "finecaption describe owner/dataset --split train --output captions.parquet"),
    ),
    "demo": (
        ("The embedded model, in a browser.", "finecaption demo"),
        ("Your checkpoint, and SAM 2 for clicks.",
         "finecaption demo --model checkpoint --segmenter facebook/sam2.1-hiera-tiny --port 7861"),
    ),
    "serve": (
        ("A checkpoint, to programs on this machine.", "finecaption serve --model checkpoint --port 8000"),
        ("Another model, to whoever has the token.",
         "finecaption serve --model Qwen/Qwen2.5-VL-3B-Instruct --host 0.0.0.0 --token-env TOKEN"),
    ),
    "prompts": (
        ("A file to edit, and the call that uses it.",
         "finecaption prompts --model Qwen/Qwen2.5-VL-3B-Instruct --out prompts.yaml"),
        ("", "finecaption caption photo.jpg --model Qwen/Qwen2.5-VL-3B-Instruct --prompts prompts.yaml"),
    ),
    "data": (("What is in a dataset, and what is wrong with it.", "finecaption data check annotations.json"),),
    "data check": (
        ("Pictures that lie elsewhere.", "finecaption data check annotations.json --images photos.zip"),
        ("A first look at a large dataset, without its pictures.",
         "finecaption data check annotations.json --limit 1000 --texts-only"),
    ),
    "scenes": (
        ("A dataset whose right answers are known.", "finecaption scenes render --out scenes --n 100"),
        ("How many answers of the embedded model are right.", "finecaption scenes score --n 50"),
    ),
    "scenes render": (
        ("Scenes to train on.", "finecaption scenes render --out scenes --n 2000"),
        ("Held-out scenes, of one region each.",
         "finecaption scenes render --out held-out --n 50 --split test --regions 1"),
    ),
    "scenes score": (
        ("Every attribute.", "finecaption scenes score --n 50"),
        ("Two questions, and what the mask does for them.",
         "finecaption scenes score --n 50 --name color --name shape --no-mask"),
    ),
    "assemble": (
        ("An 8B model of the paper's parts.",
         "finecaption assemble --clip openai/clip-vit-large-patch14-336 --alpha-clip clip_l14_336_grit.pth "
         "--convnext convnext_xxlarge.clip_laion2b_soup --sam facebook/sam-vit-large "
         "--llm meta-llama/Llama-3.1-8B-Instruct --out checkpoint"),
        ("From LLaVA-1.5, with the mask but without the other towers.",
         "finecaption assemble --from-llava llava-hf/llava-1.5-7b-hf --without convnext --without sam "
         "--out checkpoint"),
    ),
    "info": (
        ("The full-size default.", "finecaption info"),
        ("A checkpoint with half the layers.", "finecaption info checkpoint --set text_config.num_hidden_layers=16"),
    ),
    "train": (
        ("Stages in a row, as a file of yours says.", "finecaption train --recipe stages.yaml --output run"),
        ("One stage on your data, with options of transformers.TrainingArguments.",
         "finecaption train --stage adapter --model checkpoint --data train.jsonl --eval-data held-out.jsonl "
         "--output run --learning-rate 1e-4 --max-steps 500"),
    ),
    "quantise": (
        ("4 bits, and what they cost in accuracy.",
         "finecaption quantise checkpoint --scheme int4 --out checkpoint-int4 --data held-out.jsonl"),
    ),
    "export": (("Towers and adapter as ONNX.", "finecaption export onnx --model checkpoint --out vision.onnx"),),
    "export onnx": (
        ("Of the embedded model.", "finecaption export onnx --out vision.onnx"),
        ("Of a checkpoint.", "finecaption export onnx --model checkpoint --out vision.onnx --json"),
    ),
    "evaluate": (
        ("Without Java and without a model for BERTScore.",
         "finecaption evaluate --data held-out.jsonl --output evaluation --metrics rouge_l,bleu,cider "
         "--tokenizer python"),
        ("Is it better than before?",
         "finecaption evaluate --data held-out.jsonl --model checkpoint --compare evaluation --output evaluation-new"),
        ("Does the mask matter? On rendered scenes also: are the answers right?",
         "finecaption evaluate --data held-out.jsonl --output evaluation --diagnostics mask,accuracy"),
    ),
    "ablate": (
        ("On rendered scenes.", "finecaption ablate --model checkpoint --data scenes --output ablation"),
        ("Two configurations, one seed, 200 steps.",
         "finecaption ablate --model checkpoint --data scenes --output ablation --configuration clip "
         "--configuration mask --seeds 1 --max-steps 200"),
    ),
    "push": (
        ("A private repository, with the figures of an evaluation.",
         "finecaption push checkpoint owner/name --private --report evaluation/report.json"),
    ),
    "renew": (
        ("What would change.", "finecaption renew owner/name --dry-run"),
        ("As a proposal on the Hub.", "finecaption renew owner/name --create-pr"),
    ),
    "space": (
        ("A folder to look at first.", "finecaption space space-folder --model owner/name"),
        ("And on to the Hub.",
         'finecaption space space-folder --model owner/name --title "Captions of regions" --push owner/space'),
    ),
}  # fmt: skip
"""By the words of a command behind `finecaption`."""
