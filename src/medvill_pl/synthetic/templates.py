"""What the reports of the embedded corpus are written from: templates, words for grades and places, and how often.

Every sentence is here; :mod:`medvill_pl.synthetic.grammar` says when which one is written. The texts belong to a
version of the corpus and never change within it, whatever words the rest of the library uses. No sentence fits two
findings, two grades or two sections: only so has every report one derivation.
"""

OPENING = {
    "AP": (
        "Portable AP view of the chest.",
        "Supine AP chest radiograph.",
        "Single anteroposterior film obtained at the bedside.",
        "AP projection, semi-erect position.",
    ),
    "PA": (
        "PA view of the chest.",
        "Upright PA chest radiograph.",
        "Single posteroanterior film obtained standing.",
        "PA projection in full inspiration.",
    ),
}
"""First sentences, by projection."""

CLOSING = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No evidence of active disease.",
    "Unremarkable examination.",
)
"""Last sentences of a report without a finding."""

CLEAR = (
    "The lungs are clear.",
    "Both lungs are well expanded and clear.",
    "Lungs are well aerated bilaterally.",
    "Clear lungs without abnormal shadows.",
)
"""Sentences for lungs without a finding."""

POSITIVE = {
    "Enlarged Cardiomediastinum": (
        "The mediastinum is {adverb} widened.",
        "There is {severity} widening of the superior mediastinum.",
        "{severity} mediastinal enlargement.",
        "Upper mediastinum appears {adverb} broadened.",
    ),
    "Cardiomegaly": (
        "The heart is {adverb} enlarged.",
        "There is {severity} cardiomegaly.",
        "{severity} enlargement of the heart.",
        "Heart size is {adverb} increased.",
        "{severity} cardiomegaly is noted.",
    ),
    "Lung Lesion": (
        "{count} {size} {nodule} in the {side} {zone} lung.",
        "{count} {nodule} of {size} size projecting over the {lobe}.",
        "There {is} {count} {size} round {nodule} within the {lobe}.",
        "{side} {zone} zone contains {count} well-defined {size} {nodule}.",
    ),
    "Lung Opacity": (
        "{grade} hazy opacity in the {side} {zone} lung zone.",
        "Ill-defined {grade} opacity overlies the {lobe}.",
        "There is a {grade} infiltrate in the {side} {zone} lung.",
        "{grade} hazy opacification of the {lobe}.",
    ),
    "Edema": (
        "{severity} pulmonary edema.",
        "There is {severity} interstitial edema with perihilar haze.",
        "{severity} alveolar edema with peripheral septal thickening.",
        "Findings of {severity} edema in both lungs.",
    ),
    "Consolidation": (
        "{density} consolidation of the {lobe}.",
        "There is {density} consolidation with air bronchograms in the {side} {zone} lung.",
        "{density} {side} {zone} consolidation bordered by a fissure.",
        "The {lobe} shows {density} homogeneous consolidation.",
    ),
    "Pneumonia": (
        "{extent} patchy pneumonia in the {side} {zone} lung.",
        "There is {extent} bronchopneumonia in the {lobe}.",
        "{extent} {side} {zone} pneumonia.",
        "The {lobe} shows {extent} multifocal pneumonia.",
    ),
    "Atelectasis": (
        "{grade} {side} basilar atelectasis.",
        "{grade} linear atelectasis at the {base}.",
        "There is {grade} bandlike atelectasis just above the {side} {diaphragm}.",
        "{grade} {side} subsegmental atelectasis in the lower lobes.",
    ),
    "Pneumothorax": (
        "{size} {side} pneumothorax.",
        "There is a {size} {side} apical pneumothorax.",
        "{size} pneumothorax on the {side} with a visible visceral pleura.",
        "A {size} pneumothorax is seen along the {side} chest wall.",
    ),
    "Pleural Effusion": (
        "{size} {side} pleural {effusion}.",
        "There {is_a} {size} {side} pleural {effusion} with a meniscus.",
        "{size} amount of pleural fluid, {side}.",
        "Layering {size} {side} {effusion}.",
    ),
    "Pleural Other": (
        "{grade} {side} pleural thickening.",
        "There is {grade} pleural thickening along the lateral {side} hemithorax.",
        "{grade} chronic pleural thickening, {side}.",
        "{side} pleural thickening of {grade} degree with plaques.",
    ),
    "Fracture": (
        "{count} {displaced} {side} rib {fracture}.",
        "There {is} {count} {displaced} {fracture} of the {side} ribs.",
        "{displaced} {fracture} involving {count} {side} {rib}.",
        "{side} rib {fracture}, {count} in total, {displaced}.",
    ),
}
"""Sentences that state a finding, with blanks for what is known of it."""

HEDGED = {
    "Enlarged Cardiomediastinum": (
        "Possible slight widening of the mediastinum.",
        "Questionable mediastinal enlargement.",
        "Widening of the mediastinum cannot be excluded.",
    ),
    "Cardiomegaly": (
        "Possible borderline cardiomegaly.",
        "Questionable enlargement of the heart.",
        "Cardiomegaly cannot be excluded.",
    ),
    "Lung Lesion": (
        "Possible subtle {nodule} in the {side} {zone} lung.",
        "Questionable {nodule} over the {lobe}.",
        "A {side} {zone} nodule cannot be excluded.",
    ),
    "Lung Opacity": (
        "Possible faint opacity in the {side} {zone} lung.",
        "Questionable infiltrate in the {lobe}.",
        "A {side} {zone} opacity cannot be excluded.",
    ),
    "Edema": (
        "Possible early pulmonary edema.",
        "Questionable interstitial edema.",
        "Incipient edema cannot be excluded.",
    ),
    "Consolidation": (
        "Possible developing consolidation of the {lobe}.",
        "Questionable {side} {zone} consolidation.",
        "Consolidation in the {side} {zone} lung cannot be excluded.",
    ),
    "Pneumonia": (
        "Possible early pneumonia in the {side} {zone} lung.",
        "Questionable {lobe} pneumonia.",
        "{side} {zone} pneumonia cannot be excluded.",
    ),
    "Atelectasis": (
        "Possible trace {side} basilar atelectasis.",
        "Questionable atelectasis at the {base}.",
        "{side} atelectasis cannot be excluded.",
    ),
    "Pneumothorax": (
        "Possible tiny {side} pneumothorax.",
        "Questionable {side} apical pneumothorax.",
        "A {side} pneumothorax cannot be excluded.",
    ),
    "Pleural Effusion": (
        "Possible trace {side} pleural {effusion}.",
        "Questionable {side} pleural fluid.",
        "{side} {effusion} cannot be excluded.",
    ),
    "Pleural Other": (
        "Possible slight {side} pleural thickening.",
        "Questionable pleural thickening on the {side}.",
        "{side} pleural thickening cannot be excluded.",
    ),
    "Fracture": (
        "Possible nondisplaced {side} rib {fracture}.",
        "Questionable {side} rib {fracture}.",
        "{side} rib {fracture} cannot be excluded.",
    ),
}
"""Sentences for a finding so faint that the report hedges."""

DEVICE = {
    "endotracheal tube": (
        "An endotracheal tube is in place.",
        "Endotracheal tube terminates above the carina.",
        "The tip of the endotracheal tube lies in the trachea.",
    ),
    "nasogastric tube": (
        "A nasogastric tube courses below the diaphragm.",
        "Nasogastric tube ends in the stomach.",
        "Enteric feeding tube in expected position.",
    ),
    "jugular catheter": (
        "A {side} jugular central venous catheter is present.",
        "{side} internal jugular catheter with its tip in the vena cava.",
        "Central catheter inserted from the {side}.",
    ),
    "chest tube": (
        "A {side} chest tube is in place.",
        "{side} thoracostomy tube is well positioned.",
        "Pleural drain enters the {side} hemithorax.",
    ),
    "pacemaker": (
        "A {side} pacemaker is present.",
        "{side} sided pacemaker with an intact lead.",
        "Cardiac pacemaker generator overlies the {side} chest.",
    ),
    "sternal hardware": (
        "Median sternotomy hardware is aligned.",
        "Intact hardware after sternotomy.",
        "Sternal fixation hardware from previous cardiac surgery.",
    ),
}
"""Sentences that state a device."""

NEGATIVE = {
    "Enlarged Cardiomediastinum": (
        "The mediastinum is not widened.",
        "Mediastinal silhouette is within normal limits.",
        "The cardiomediastinal silhouette is unremarkable.",
    ),
    "Cardiomegaly": ("Heart size is normal.", "The heart is not enlarged.", "No cardiomegaly."),
    "Lung Lesion": ("No pulmonary nodule.", "No mass or nodule is identified."),
    "Lung Opacity": ("No focal opacity.", "There is no infiltrate."),
    "Edema": ("No pulmonary edema.", "No evidence of edema."),
    "Consolidation": ("No focal consolidation.", "There is no lobar consolidation."),
    "Pneumonia": ("No evidence of pneumonia.", "There are no signs of pneumonia."),
    "Atelectasis": ("No atelectasis.",),
    "Pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax.", "Pneumothorax is absent."),
    "Pleural Effusion": ("No pleural effusion.", "There is no pleural fluid.", "No effusion is seen."),
    "Pleural Other": ("No pleural thickening.",),
    "Fracture": ("No displaced rib fracture.", "No acute fracture is seen.", "The ribs show no fracture."),
    "Support Devices": ("No tubes or catheters are present.",),
}
"""Sentences that deny a finding."""

DENIAL_RATE = {
    "Enlarged Cardiomediastinum": 0.35,
    "Cardiomegaly": 0.55,
    "Lung Lesion": 0.1,
    "Lung Opacity": 0.1,
    "Edema": 0.2,
    "Consolidation": 0.35,
    "Pneumonia": 0.15,
    "Atelectasis": 0.05,
    "Pneumothorax": 0.45,
    "Pleural Effusion": 0.45,
    "Pleural Other": 0.05,
    "Fracture": 0.25,
    "Support Devices": 0.05,
}
"""Probability that a finding which is not there is denied."""

DENIED_TOGETHER = (
    "No pleural effusion or pneumothorax.",
    "There is no pneumothorax or pleural effusion.",
    "Neither effusion nor pneumothorax is demonstrated.",
)
"""Sentences that deny effusion and pneumothorax at once."""

SCALES = {
    "severity": ("mild", "moderate", "severe"),
    "adverb": ("mildly", "moderately", "markedly"),
    "size": ("small", "medium", "large"),
    "grade": ("minimal", "moderate", "marked"),
    "density": ("subtle", "moderate", "dense"),
    "extent": ("limited", "moderate", "extensive"),
    "displaced": ("minimally displaced", "displaced", "grossly displaced"),
}
"""What a blank for a grade stands for: mild, moderate, severe."""

LOBES = {
    ("left", "upper"): "left upper lobe",
    ("left", "mid"): "lingula",
    ("left", "lower"): "left lower lobe",
    ("right", "upper"): "right upper lobe",
    ("right", "mid"): "right middle lobe",
    ("right", "lower"): "right lower lobe",
}
"""The lobe of a side and a zone."""
