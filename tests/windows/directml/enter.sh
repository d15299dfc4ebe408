#!/bin/sh
# In the lab: run COMMAND… in the Windows that has a display and Direct3D 12 (on a software card).
export WINEPREFIX="$HOME/.wine-directml" DISPLAY=:78 VKD3D_DEBUG=err
export VK_DRIVER_FILES=/usr/share/vulkan/icd.d/lvp_icd.json COE_DIRECTML=1
rm -f "/tmp/.X78-lock" /tmp/.X11-unix/X78
Xvfb :78 -screen 0 640x480x24 -nolisten tcp >/dev/null 2>&1 &
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -e /tmp/.X11-unix/X78 ] && break; sleep 0.3; done
[ -e "$WINEPREFIX" ] && /usr/lib/wine/wineserver64 -p
exec "$@"
