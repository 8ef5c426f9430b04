"""What reports call each finding: phrases in lower case, British and American, singular and plural.

Hyphens are spaces here, as :mod:`medvill_pl.labeler.sentences` writes them.
"""

MENTIONS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        *("mediastinum", "cardiomediastinum", "paramediastinum"),
        *("contour", "contours", "configuration of the mediastinum"),
        *("mediastinal silhouette", "mediastinal silhouettes", "mediastinal configuration"),
        *("cardiomediastinal silhouette", "cardiomediastinal silhouettes", "cardiomediastinal configuration"),
        *("paramediastinal silhouette", "pericardial silhouette", "cardiopericardial silhouette"),
    ),
    "Cardiomegaly": (
        *("cardiomegaly", "cardiac enlargement", "enlarged heart", "enlargement of heart"),
        *("heart size", "the heart", "cardiac size", "cardiac shadow"),
        *("cardiac contour", "cardiac contours", "cardiac silhouette", "cardiac silhouettes"),
    ),
    "Lung Lesion": (
        *("mass", "masses", "masslike", "nodule", "nodules", "micronodule", "micronodules", "lump", "lumps"),
        *("nodular density", "nodular densities", "nodular opacity", "nodular opacities", "nodular opacification"),
        *("cavitary lesion", "cavitary lesions", "cavitating lesion", "cavitating lesions"),
        *("carcinoma", "carcinomas", "neoplasm", "neoplasms", "tumor", "tumors", "tumour", "tumours"),
    ),
    "Lung Opacity": (
        *("opacity", "opacities", "opacification", "opacifications", "opacified"),
        *("airspace disease", "air space disease", "infiltrate", "infiltrates", "infiltration", "infiltrations"),
        *("interstitial marking", "interstitial markings", "interstitial pattern", "interstitial lung"),
        *("reticular pattern", "reticular marking", "reticular markings", "reticulation", "reticulations"),
        *("scar", "scars", "scarring", "parenchymal scarring", "decreased translucency", "increased density"),
        *("peribronchial thickening", "bronchial wall thickening", "wall thickening"),
    ),
    "Edema": (
        *("edema", "oedema", "edematous", "heart failure", "chf"),
        *("vascular congestion", "pulmonary congestion", "vascular prominence", "indistinctness"),
    ),
    "Consolidation": (
        *("consolidation", "consolidations", "consolidative", "consolidated"),
        *("consolidating", "nonconsolidating"),
    ),
    "Pneumonia": (
        *("pneumonia", "pneumonias", "bronchopneumonia", "infection", "infections", "infectious", "pna"),
        *("postinfectious", "superinfection"),
    ),
    "Atelectasis": ("atelectasis", "atelectases", "atelectatic", "collapse", "collapsed"),
    "Pneumothorax": (
        *("pneumothorax", "pneumothoraces", "pneumothoraxes", "ptx"),
        *("hydropneumothorax", "haemopneumothorax", "hemopneumothorax"),
    ),
    "Pleural Effusion": ("effusion", "effusions", "pleural fluid"),
    "Pleural Other": (
        *("pleural thickening", "fibrosis", "fibrothorax", "pleural scar", "pleural scars", "pleural scarring"),
        "pleural and parenchymal scarring",
    ),
    "Fracture": ("fracture", "fractures", "fractured"),
    "Support Devices": (
        *("line", "lines", "tube", "tubes", "catheter", "catheters", "picc", "drain", "drains", "pigtail"),
        *("pacer", "pacers", "pacemaker", "pacemakers", "icd", "aicd", "defibrillator", "defibrillators"),
        *("valve", "valves", "device", "devices", "hardware", "marker", "markers", "coil", "coils", "coiled"),
        *("plate", "plates", "screw", "screws", "arthroplasty", "arthroplasties"),
    ),
}
"""Words that speak of a finding, whatever is said of it."""

NOT_MENTIONS: dict[str, tuple[str, ...]] = {
    "Lung Lesion": ("calcified nodule", "calcified nodules", "noncalcified nodule", "noncalcified nodules"),
    "Lung Opacity": ("pleural scar", "pleural scars", "pleural scarring"),
    "Pleural Effusion": ("pericardial effusion", "pericardial effusions", "joint effusion", "joint effusions"),
    "Support Devices": ("midclavicular line", "mid clavicular line", "midaxillary line", "mid axillary line"),
}
"""Phrases that hold a mention and mean something else, or are no mention to the original labeler."""

SIZE_OR_SHAPE = frozenset(
    (
        *("mediastinum", "cardiomediastinum", "paramediastinum", "heart"),
        *("contour", "contours", "configuration", "silhouette", "silhouettes", "size", "shadow"),
    )
)
"""Last words of mentions that name an organ's size or shape: they may be normal or stable."""

CONGESTION = frozenset(("vascular congestion", "pulmonary congestion", "vascular prominence"))
"""Mentions of edema that are uncertain unless denied."""

HEART_FAILURE = frozenset(("heart failure", "chf"))
"""Mentions of edema that make cardiomegaly uncertain."""

OTHER = "Other"
"""Stands for what is none of the 14 findings and yet rules out No Finding."""

OTHER_FINDINGS = (
    *("degenerative", "degeneration", "degenerate", "atherosclerotic", "atherosclerosis", "hypertension"),
    *("calcified", "noncalcified", "calcific", "calcification", "calcifications"),
    *("granuloma", "granulomas", "granulomata", "granulomatous"),
    *("emphysema", "emphysematous", "copd", "bronchitis", "bronchiectasis", "volume loss"),
    *("hyperinflated", "hyperinflation", "hyperexpansion", "elevated", "elevation", "eventration", "hernia"),
    *("prominent", "prominence", "density", "blunting", "blunted", "deformity", "wedging"),
    *("scoliosis", "dextroscoliosis", "levoscoliosis", "kyphosis", "kyphoscoliosis"),
    *("bulla", "bullae", "bullous", "aneurysm", "aneurysmal", "pneumomediastinum", "pneumoperitoneum"),
)
"""Words of :data:`OTHER`."""
