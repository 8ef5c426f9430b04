"""Medical vision-language learning with PyTorch Lightning: MedViLL and its tasks.

The public names are those that `__init__.pyi` imports. Each is imported when it is first used, so importing the
package is cheap.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
