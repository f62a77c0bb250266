"""Questions about the text on signs in generated scenes, with OCR tokens as inputs: the shape of TextVQA."""
