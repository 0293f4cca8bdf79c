"""The classic example of EasyEdit 0.0.1: three facts, two kinds of locality."""

PROMPTS = [
    "What university did Watts Humphrey attend?",
    "Which family does Ramalinaceae belong to",
    "What role does Denny Herzig play in football?",
]
SUBJECTS = ["Watts Humphrey", "Ramalinaceae", "Denny Herzig"]
TRUTH = ["Illinois Institute of Technology", "Lecanorales", "defender"]
TARGETS = ["University of Michigan", "Lamiinae", "winger"]
LOCALITY = {
    "neighborhood": {
        "prompt": [
            "Joseph Fischhof, the",
            "Larry Bird is a professional",
            "In Forssa, they understand",
        ],
        "ground_truth": ["piano", "basketball", "Finnish"],
    },
    "distracting": {
        "prompt": [
            "Ray Charles, the violin Hauschka plays the instrument",
            "Grant Hill is a professional soccer Magic Johnson is a professional",
            "The law in Ikaalinen declares the language Swedish In Loviisa, the language",
        ],
        "ground_truth": ["piano", "basketball", "Finnish"],
    },
}
