"""PEFT."""
from ...files.foreign import FOREIGN, Inexpressible
class P:  # the PEFT dialects follow
    name="peft"; config_name="adapter_config.json"
    def write(self,*a): raise Inexpressible("todo")
FOREIGN["peft"]=P()
