-- Which layout the keys are in. Arguments: ours, which a store without one has from now on. The reply: its own.

call('HSETNX', P .. 'meta', 'layout', given[1])
return tonumber(call('HGET', P .. 'meta', 'layout')) or 0
