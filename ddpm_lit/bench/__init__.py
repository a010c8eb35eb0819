"Speed and parity beside other libraries; in a clone only, not in the wheel."
